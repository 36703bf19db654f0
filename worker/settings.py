"""Every setting of both programs: its name, default, unit and rule.

One rule: settings are one frozen value, read at start; what a function needs of them is passed to it.
Each may be given as a flag (`--tick-seconds`), in the environment (`PERDURE_TICK_SECONDS`), or in a TOML file named by
`PERDURE_CONFIG` (`tick_seconds`), and is taken from the first of these that has it, else from the default here.  Lists
have no flag and are separated by commas in the environment; tables stand in the file alone.

Those in `RELOADED` are read again on SIGHUP, from the same places.  So whoever starts the programs does not hand these
on to them, who would go on seeing the old ones, but for what it was told by a flag; and it says which of the others it
hands on (`HANDED_ON`), so that a program can tell whether the file has another value by now (`read_again`).
"""

from __future__ import annotations

import difflib
import os
import re
import ssl
import tomllib
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext, suppress
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import platformdirs
from msgspec import Struct, field
from msgspec.structs import replace

from worker.logs import FORMS

IPC_PATH_BYTES_MAX: Final = 107
"""The kernel's limit on the path of a unix socket."""
LIST_ENTRIES_MAX: Final = 32
"""Names in one list: every request is asked for each of them."""
NAME_CHARACTERS_MAX: Final = 100
"""Of a header, a path or an alias, which are stored with sessions; real ones have 10 to 30."""
HOST_CHARACTERS_MAX: Final = 253
"""The longest name that DNS can hold."""
PORT_DIGITS_MAX: Final = 5
MESSAGE_CHARACTERS_MAX: Final = 800
"""Of what is said about a setting: room for the names of all of them, not for a file that was given for one."""

MODELS_MAX: Final = 1_000
"""Models with prices of their own; the list that comes with perdure knows about as many."""
PRICE_USD_MAX: Final = 100_000
"""For a million tokens: a hundred times the dearest model on offer."""
WINDOW_TOKENS_MAX: Final = 100_000_000
"""A hundred times the largest context window on offer."""

UNHEARD_SHOWN: Final = 8
"""Of variables that nobody looks at: whoever has more has another program's."""

HANDED_ON: Final = "PERDURE_HANDED_ON"
"""Names, in the environment, the settings that are only there because somebody else had read them."""
TABLES: Final = frozenset({"providers", "account_aliases", "models"})
_NAMING: Final = frozenset(
    {"session_headers", "session_fields", "account_headers", "agent_headers", "parent_headers", "account_aliases"}
)
RELOADED: Final = _NAMING | {
    *("models", "token", "hosts", "anthropic_url", "openai_url", "providers", "outbox_writes", "body_bytes"),
    *("tick_seconds", "notice_seconds", "drain_seconds", "ledger_days", "session_days", "log_level", "log_format"),
}
"""What is read again on SIGHUP and is in force from then on."""
OF_WORKER: Final = frozenset(
    {
        *("state_dir", "runtime_dir", "worker_url", "group", "curve_dir", "ledger_days", "session_days"),
        *("log_level", "log_format"),
    }
)
"""What the worker uses."""
NOT_OF_DAEMON: Final = frozenset({"group", "ledger_days", "session_days"})
"""What the worker alone uses."""
WITHOUT_FLAG: Final = _NAMING | TABLES | {"token", "hosts"}
"""Tables and lists do not fit a flag, and a secret on a command line is everybody's to read."""
SECRET: Final = frozenset({"token"})


class BadSettings(Exception):
    """The configuration can not be used; the message names the setting, what is wrong with it, and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


class Model(Struct, frozen=True, kw_only=True):
    """What the operator says of one model: dollars per million tokens, and tokens.  None: it is not said."""

    input: Decimal | None = None
    cache_read: Decimal | None = None
    cache_write_5m: Decimal | None = None
    cache_write_1h: Decimal | None = None
    output: Decimal | None = None
    context_window: int | None = None
    """The largest prompt."""

    @property
    def is_priced(self) -> bool:
        return self.input is not None and self.output is not None


class Loaded(Struct, frozen=True, kw_only=True):
    """Settings, and where each is from."""

    settings: Settings
    origins: dict[str, str]
    """By name: `default`, or the flag, variable or file that it was taken from."""
    overruled: dict[str, Any]
    """What stands in the file about settings that were taken from elsewhere."""
    path: str
    """The file's; empty: there is none."""


class Settings(Struct, frozen=True, kw_only=True):
    listen: str = "127.0.0.1:7373"
    """Where clients connect: host:port.  Elsewhere than loopback only together with a token."""
    token: str = ""
    """What clients must send as `x-perdure-token`; empty: nothing is asked for."""
    hosts: tuple[str, ...] = ()
    """Names under which clients reach perdure, beside those of loopback; with a token any name will do."""
    anthropic_url: str = "https://api.anthropic.com"
    openai_url: str = "https://api.openai.com"
    providers: dict[str, str] = field(default_factory=dict)
    """Further providers, name → origin plus prefix; `/NAME/v1/…` reaches one."""
    ca_file: str = ""
    """Certificates to trust for providers, instead of the system's."""
    state_dir: str = ""
    runtime_dir: str = ""
    spill_dir: str = ""
    """A directory of a daemon's own for writes that no worker took before it had to end; empty, or where that one takes
    none: `spill` in the state directory, else in the runtime directory."""
    worker_url: str = ""
    """Where the worker listens and daemons find it: `ipc://PATH`, or `tcp://HOST:PORT` with keys."""
    group: str = ""
    """Whose members' daemons may reach the worker's socket too; empty: those of the worker's user alone."""
    curve_dir: str = ""
    """Directory with the CURVE keys that `tcp://` needs; `perdure keys` makes it."""
    tick_seconds: float = 30.0
    """How often what changed in a session's state is written as a snapshot."""
    ledger_days: int = 400
    """How long single rows of the ledger are kept; 0: for ever.  Sums stay in any case.  A year, and what of the year
    before is still compared with it."""
    session_days: int = 730
    """How long a session without a turn is kept, with all that names it; 0: for ever.  Not before its rows, and not at
    all where these are kept.  Two years: nobody goes on with a conversation that old, and what it cost is still there
    to be looked up in the year after its own."""
    daemons: int = 1
    """How many request daemons `perdure up` starts."""
    notice_seconds: float = 0.0
    """How long after SIGTERM a daemon with an address of its own goes on taking connections, /readyz saying 503."""
    drain_seconds: float = 30.0
    """How long streams may go on after SIGTERM."""
    outbox_writes: int = 150_000
    """Writes a daemon keeps for an absent worker: ten minutes at 100 turns a second, two writes each, and some."""
    body_bytes: int = 64 * 1024 * 1024
    """Largest request body of a turn that is read; providers refuse at 32 MB."""
    log_level: str = "info"
    log_format: str = "text"
    """How an event becomes a line: text for people, with fields as key=value; or json, an object a line."""

    session_headers: tuple[str, ...] = (
        "x-claude-code-session-id",
        "x-session-id",
        "x-session-affinity",
        "session-id",
        "session_id",
    )
    """Headers whose value a client mints for one conversation (Claude Code; OpenCode; Codex; Pi), in the order in which
    they are believed where several are there."""
    session_fields: tuple[str, ...] = (
        "metadata.user_id.session_id",
        "client_metadata.thread_id",
        "conversation.id",
        "conversation",
    )
    """The same in a request's body: keys joined by dots.  A text on the way that holds JSON is looked into."""
    account_headers: tuple[str, ...] = ("chatgpt-account-id",)
    """Headers that name who pays and stay the same when credentials change."""
    agent_headers: tuple[str, ...] = ("x-claude-code-agent-id",)
    """Headers that name one sub-agent beside the session id it shares with its parent."""
    parent_headers: tuple[str, ...] = ("x-parent-session-id", "x-codex-parent-thread-id")
    """Headers with the id of the session that started this one."""
    account_aliases: dict[str, str] = field(default_factory=dict)
    """Account as it is shown → what its owner calls it."""
    models: dict[str, Model] = field(default_factory=dict)
    """Prices and limits by a model's name, or by PROVIDER/NAME; they come before those of the list."""

    @property
    def listen_host(self) -> str:
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def listen_port(self) -> int:
        return int(self.listen.rpartition(":")[2])

    @property
    def database(self) -> Path:
        return Path(self.state_dir) / "perdure.db"

    @property
    def lock(self) -> Path:
        """Held by the one worker of a state directory; names its pid."""
        return Path(self.state_dir) / "perdure.lock"

    @property
    def provider_urls(self) -> dict[str, str]:
        return {**self.providers, "anthropic": self.anthropic_url, "openai": self.openai_url}


def load(flags: Mapping[str, str], environ: Mapping[str, str]) -> Settings:
    """The settings in force.  Raises BadSettings."""
    return loaded(flags, environ).settings


def loaded(flags: Mapping[str, str], environ: Mapping[str, str]) -> Loaded:
    """The same, with the origin of each.  Raises BadSettings."""
    path = flags.get("config") or environ.get("PERDURE_CONFIG", "")
    table = _read(Path(path)) if path else {}
    known = set(Settings.__struct_fields__)
    for name in table:
        if name not in known:
            raise BadSettings(f"{path}: unknown key {name!r}{_nearest(name, known)}")
    given: dict[str, Any] = {}
    origins: dict[str, str] = dict.fromkeys(Settings.__struct_fields__, DEFAULT)
    for name in Settings.__struct_fields__:
        value, origin = _first(name, flags, environ, table, path)
        if value is not None:
            given[name] = typed(name, value, origin)
            origins[name] = path if origin == _in_file(path, name) else origin
    try:
        settings = checked(_placed(Settings(**given), environ))
    except BadSettings as error:
        raise _with_origin(error, origins) from None
    overruled = {name: value for name, value in table.items() if origins[name] != path}
    origins |= _places(given, environ)
    return Loaded(settings=settings, origins=origins, overruled=overruled, path=path)


def loaded_places(flags: Mapping[str, str], environ: Mapping[str, str]) -> Loaded:
    """Where things are, and how long a stop may take, of settings that can not be used as a whole: what can be read of
    those few; nothing else in the result means anything.  Raises BadSettings where not even that can be told."""
    path = flags.get("config") or environ.get("PERDURE_CONFIG", "")
    table = _salvaged(Path(path)) if path else {}
    given: dict[str, Any] = {}
    for name in ("state_dir", "runtime_dir", "drain_seconds"):
        value, origin = _first(name, flags, environ, table, path)
        with nullcontext() if name.endswith("_dir") else suppress(BadSettings):
            if value is not None:
                given[name] = typed(name, value, origin)
    settings = _placed(Settings(**given), environ)
    return Loaded(settings=settings, origins=dict.fromkeys(Settings.__struct_fields__, DEFAULT), overruled={}, path="")


def _salvaged(path: Path) -> dict[str, Any]:
    """What stands in a file that may be broken: all of it, or what each line before the first table says by itself."""
    with suppress(BadSettings):
        return _read(path)
    found: dict[str, Any] = {}
    with suppress(OSError):
        for line in path.read_text("utf-8", "replace").splitlines():
            if line.lstrip().startswith("["):
                break
            with suppress(ValueError, RecursionError):
                found |= tomllib.loads(line)
    return found


def unheard(environ: Mapping[str, str]) -> list[str]:
    """What stands in the environment under our name and is looked at by nobody, in words.  Another program's, or one of
    another version's, may be among it: so it is told of, and refused by nobody.  Values are not: one may be a token."""
    heard = {variable_of(name) for name in Settings.__struct_fields__ if name not in TABLES} | _NOT_SETTINGS
    said = []
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or name in heard:
            continue
        if (setting := name.removeprefix(_PREFIX).lower()) in TABLES:
            said.append(
                f"{name} is not looked at: {setting} is a table, and stands in the file that PERDURE_CONFIG names"
            )
            continue
        close = difflib.get_close_matches(name, sorted(heard), n=1, cutoff=_LIKENESS)
        said.append(f"{name} is not looked at: {f'did you mean {close[0]}?' if close else 'no setting has that name'}")
    return said[:UNHEARD_SHOWN]


def _with_origin(error: BadSettings, origins: Mapping[str, str]) -> BadSettings:
    """What is checked when all settings are together names a setting by its variable, wherever it came from."""
    variable, colon, said = str(error).partition(": ")
    name = variable.removeprefix("PERDURE_").lower()
    origin = origins.get(name, DEFAULT)
    if not colon or origin in (DEFAULT, variable):
        return error
    return BadSettings(f"{origin if origin.startswith('--') else f'{origin}: {name}'}: {said}")


def _first(
    name: str, flags: Mapping[str, str], environ: Mapping[str, str], table: Mapping[str, Any], path: str
) -> tuple[Any, str]:
    # What is empty is not given: service managers and shells leave such behind.
    if flags.get(name):
        return flags[name], f"--{name.replace('_', '-')}"
    if environ.get(variable_of(name)) and name not in TABLES:
        return environ[variable_of(name)], variable_of(name)
    return table.get(name), _in_file(path, name)


def variable_of(name: str) -> str:
    return f"PERDURE_{name.upper()}"


def _in_file(path: str, name: str) -> str:
    return f"{path}: {name}"


def _places(given: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Where directories are from that a service manager named."""
    named = {"state_dir": ("STATE_DIRECTORY",), "runtime_dir": ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR")}
    found = {name: [variable for variable in named[name] if environ.get(variable)] for name in named}
    return {name: variables[0] for name, variables in found.items() if variables and not given.get(name)}


def typed(name: str, value: Any, origin: str) -> Any:
    """A value as it was given somewhere, as the setting holds it.  Raises BadSettings."""
    default = getattr(_DEFAULTS, name)
    try:
        if name in TABLES:
            return _TABLE_READERS[name](value, origin)
        if isinstance(default, tuple):
            return _names(value, origin, _CHECKS.get(name, _check_header))
        # Flags and the environment give text; in a file a number is a number, and half a daemon is none.
        if not isinstance(value, _ACCEPTED[type(default)]) or isinstance(value, bool):
            raise ValueError
        return type(default)(value)
    except (ValueError, OverflowError):
        kind = {
            "float": "a number",
            "int": "a whole number",
            "str": "a text",
            "dict": "a table",
            "tuple": "a list of texts",
        }
        said = "what stands there" if name in SECRET else _quoted(value)
        raise BadSettings(f"{origin}: {said} is not {kind[type(default).__name__]}") from None


def _provider_table(value: Any, origin: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError
    for name, url in value.items():
        if name in ("anthropic", "openai"):
            raise BadSettings(f"{origin}.{name}: it has a setting of its own, {name}_url")
        if not name.isidentifier() or name in _OWN_PATHS or not isinstance(url, str):
            raise BadSettings(f'{origin}.{name}: a provider is NAME = "https://…", with a name of letters and digits')
        _url(f"{origin}.{name}", url)
    return dict(value)


def _alias_table(value: Any, origin: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError
    for account, alias in value.items():
        if not isinstance(alias, str) or not _is_name(alias):
            raise BadSettings(f"{origin}.{account}: an alias is a text of 1 to {NAME_CHARACTERS_MAX} characters")
    return dict(value)


def _model_table(value: Any, origin: str) -> dict[str, Model]:
    if not isinstance(value, dict):
        raise ValueError
    if len(value) > MODELS_MAX:
        raise BadSettings(f"{origin}: {len(value)} models are more than {MODELS_MAX}")
    return {name: _model(name, said, f"{origin}.{name}") for name, said in value.items()}


def _model(name: str, said: Any, origin: str) -> Model:
    if not _is_name(name):
        raise BadSettings(f"{origin}: a model's name is a text of 1 to {NAME_CHARACTERS_MAX} characters")
    if not isinstance(said, dict) or not said:
        raise BadSettings(f"{origin}: a model is a table with prices, like {{ input = 3.0, output = 15.0 }}")
    known = set(Model.__struct_fields__)
    for key in said:
        if key not in known:
            raise BadSettings(f"{origin}: unknown key {key!r}{_nearest(key, known)}")
    window = said.get("context_window")
    if window is not None and (isinstance(window, bool) or not isinstance(window, int)):
        raise BadSettings(f"{origin}.context_window: {_quoted(window)} is not a whole number of tokens")
    if window is not None and not 1 <= window <= WINDOW_TOKENS_MAX:
        raise BadSettings(f"{origin}.context_window: {_quoted(window)} is not between 1 and {WINDOW_TOKENS_MAX}")
    prices = {key: _price(said[key], f"{origin}.{key}") for key in said if key != "context_window"}
    # Half a price would have to be completed by guessing, or by a list that changes with an upgrade.
    if missing := [key for key in ("input", "output") if prices and key not in prices]:
        raise BadSettings(f"{origin}: a price without {missing[0]} is none; give input and output at least")
    return Model(context_window=window, **prices)


def _price(value: Any, origin: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadSettings(f"{origin}: {_quoted(value)} is not a number of dollars per million tokens")
    # Not so for NaN, which is in no order; nor is an integer of any length made a decimal.
    if not 0 <= value <= PRICE_USD_MAX:
        raise BadSettings(f"{origin}: {_quoted(value)} is not between 0 and {PRICE_USD_MAX}")
    # By way of its text: what was written as 0.1 is meant to be a tenth.
    return Decimal(repr(value))


def _names(value: Any, origin: str, check: Callable[[str, str], str]) -> tuple[str, ...]:
    """A list of the file, or of the environment, where commas separate."""
    entries = [entry.strip() for entry in value.split(",")] if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError
    if len(entries) > LIST_ENTRIES_MAX:
        raise BadSettings(f"{origin}: {len(entries)} names are more than {LIST_ENTRIES_MAX}")
    names = tuple(check(entry, origin) for entry in entries)
    for index, name in enumerate(names):
        if name in names[:index]:
            raise BadSettings(f"{origin}: {name!r} stands there twice; a name has one place in the order")
    return names


def _check_header(name: str, origin: str) -> str:
    lowered = name.lower()
    if not _HEADER.fullmatch(lowered) or len(lowered) > NAME_CHARACTERS_MAX:
        raise BadSettings(f"{origin}: {name[:NAME_CHARACTERS_MAX]!r} is not the name of a header")
    if lowered in _SECRET_HEADERS:
        raise BadSettings(
            f"{origin}: {lowered} carries a secret, and what names a session is stored; use another header"
        )
    return lowered


def _check_path(path: str, origin: str) -> str:
    if not _is_name(path) or not all(path.split(".")):
        raise BadSettings(f"{origin}: {path[:NAME_CHARACTERS_MAX]!r} is not keys joined by dots, like metadata.user_id")
    return path


def _check_host(name: str, origin: str) -> str:
    lowered = name.lower().strip("[]")
    if not (_HOST.fullmatch(lowered) or _is_address(lowered)) or len(lowered) > HOST_CHARACTERS_MAX:
        shown = name[:NAME_CHARACTERS_MAX]
        raise BadSettings(f"{origin}: {shown!r} is not the name of a host, which has neither scheme nor port")
    return lowered


def _refuse_two_meanings(settings: Settings) -> None:
    meanings: dict[str, str] = {}
    for name in ("session_headers", "account_headers", "agent_headers", "parent_headers"):
        for header in getattr(settings, name):
            if header in meanings:
                raise BadSettings(f"PERDURE_{name.upper()}: {header} is one of {meanings[header]} already")
            meanings[header] = name


def _is_name(text: str) -> bool:
    return 0 < len(text) <= NAME_CHARACTERS_MAX and text.isprintable() and text == text.strip()


def _placed(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """Directories and the worker's address, where they were not given."""
    state = settings.state_dir or environ.get("STATE_DIRECTORY", "").split(":")[0]
    state = state or platformdirs.user_state_dir("perdure", appauthor=False)
    state = _absolute("PERDURE_STATE_DIR", state)
    runtime = settings.runtime_dir or environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if not runtime and environ.get("XDG_RUNTIME_DIR"):
        runtime = str(Path(environ["XDG_RUNTIME_DIR"]) / "perdure")
    runtime = _absolute("PERDURE_RUNTIME_DIR", runtime or str(Path(state) / "run"))
    url = settings.worker_url or f"ipc://{runtime}/worker.sock"
    curve = _absolute("PERDURE_CURVE_DIR", settings.curve_dir) if settings.curve_dir else ""
    spill = _absolute("PERDURE_SPILL_DIR", settings.spill_dir) if settings.spill_dir else ""
    places = {"state_dir": state, "runtime_dir": runtime, "worker_url": url, "curve_dir": curve, "spill_dir": spill}
    return replace(settings, **places)


def _absolute(origin: str, path: str) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:
        raise BadSettings(f"{origin}: {path!r} begins with a home that is not known; write it out") from None


def checked(settings: Settings) -> Settings:
    """The same, if they go together.  Raises BadSettings."""
    host, _, port = settings.listen.rpartition(":")
    if not host or not _is_port(port):
        raise BadSettings(f"PERDURE_LISTEN: {settings.listen!r} is not host:port, for example 127.0.0.1:7373")
    if not settings.token and not is_loopback(settings.listen_host):
        raise BadSettings(
            f"PERDURE_LISTEN: {settings.listen} is reachable from other machines; set PERDURE_TOKEN "
            "(clients send it as x-perdure-token), or listen on 127.0.0.1"
        )
    for name in ("anthropic_url", "openai_url"):
        _url(f"PERDURE_{name.upper()}", getattr(settings, name))
    _check_worker_url(settings)
    if not settings.token.isascii() or not settings.token.isprintable() or " " in settings.token:
        raise BadSettings("PERDURE_TOKEN: only ASCII letters, digits and signs can be sent in a header")
    for name in Settings.__struct_fields__:
        if "\0" in str(getattr(settings, name)):
            raise BadSettings(f"PERDURE_{name.upper()}: there is a NUL in it, which no address, path or name can have")
    if settings.ca_file:
        _certificates(settings.ca_file)
    for name, low, high in _RANGES:
        if not low <= getattr(settings, name) <= high:
            raise BadSettings(f"PERDURE_{name.upper()}: {getattr(settings, name)} is not between {low} and {high}")
    _refuse_two_meanings(settings)
    if settings.log_level not in ("debug", "info", "warning", "error"):
        raise BadSettings(f"PERDURE_LOG_LEVEL: {settings.log_level!r} is not debug, info, warning or error")
    if settings.log_format not in FORMS:
        raise BadSettings(f"PERDURE_LOG_FORMAT: {settings.log_format!r} is not text or json")
    return settings


def _check_worker_url(settings: Settings) -> None:
    url = settings.worker_url
    if url.startswith("tcp://"):
        _check_tcp(settings)
        return
    if not url.startswith("ipc://"):
        raise BadSettings(f"PERDURE_WORKER_URL: {url!r} is neither ipc://PATH nor tcp://HOST:PORT")
    path = url.removeprefix("ipc://")
    if not path.startswith("/"):
        raise BadSettings(f"PERDURE_WORKER_URL: {url!r} needs an absolute path, ipc:///DIRECTORY/NAME")
    if not Path(path).name or path.endswith(".lock"):
        raise BadSettings(f"PERDURE_WORKER_URL: {url!r} names no socket, as ipc:///DIRECTORY/NAME does")
    if len(os.fsencode(path)) > IPC_PATH_BYTES_MAX:
        raise BadSettings(
            f"PERDURE_WORKER_URL: {path} is longer than a socket's path may be ({IPC_PATH_BYTES_MAX} bytes); "
            "set PERDURE_RUNTIME_DIR to a shorter directory"
        )


def _check_tcp(settings: Settings) -> None:
    host, _, port = settings.worker_url.removeprefix("tcp://").rpartition(":")
    if not host or not _TCP_HOST.fullmatch(host) or not _is_port(port) or not int(port):
        raise BadSettings(
            f"PERDURE_WORKER_URL: {settings.worker_url!r} is not tcp://HOST:PORT, for example tcp://10.0.0.5:7374"
        )
    if not settings.curve_dir:
        raise BadSettings(
            "PERDURE_WORKER_URL: tcp:// is for machines that know each other's keys; `perdure keys DIRECTORY` makes "
            "them, and PERDURE_CURVE_DIR names that directory"
        )


def environment(loaded: Loaded) -> dict[str, str]:
    """The settings as environment variables: what a supervisor hands on to its children.  They read the others where it
    read them itself, and those that it hands on without having been told by a flag are named in `HANDED_ON`."""
    settings, origins = loaded.settings, loaded.origins
    by_flag = {name for name, origin in origins.items() if origin.startswith("--")}
    handed = [name for name in Settings.__struct_fields__ if name in by_flag or name not in RELOADED | TABLES | SECRET]
    read = [name for name in handed if name not in by_flag and origins[name] != variable_of(name)]
    written = {variable_of(name): _written(getattr(settings, name)) for name in handed}
    return {**written, HANDED_ON: ",".join(read)}


def without_handed_on(environ: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """The environment as it would be if those settings had not been read by somebody else before."""
    handed = {variable_of(name) for name in environ.get(HANDED_ON, "").split(",") if name in names}
    return {name: value for name, value in environ.items() if name not in handed}


def _written(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _url(origin: str, value: str) -> None:
    try:
        parts = urlsplit(value)
        if parts.username is not None:
            raise BadSettings(f"{origin}: no credentials belong there; the agent sends its own")
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not value.isprintable() or "?" in value or "#" in value:
        raise BadSettings(f"{origin}: what stands there is not http(s)://host[:port][/prefix]")


def _certificates(path: str) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        reason = error.strerror if not isinstance(error, ssl.SSLError) else "no certificates in PEM form"
        raise BadSettings(f"PERDURE_CA_FILE: {path}: {reason}") from None


def _is_address(host: str) -> bool:
    try:
        return bool(ip_address(host))
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine is meant."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False  # A name, which may mean any machine: 127.example.com too.


def _is_port(text: str) -> bool:
    return text.isdecimal() and len(text) <= PORT_DIGITS_MAX and int(text) <= 65_535


def _one_line(message: str) -> str:
    """What it quotes may be of any length and hold anything; the remedy stands at its end."""
    line = "".join(character if character.isprintable() else "\ufffd" for character in message)
    half = MESSAGE_CHARACTERS_MAX // 2
    return line if len(line) <= MESSAGE_CHARACTERS_MAX else f"{line[:half]}…{line[-half:]}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadSettings(f"{path}: {error.strerror}; PERDURE_CONFIG names a TOML file") from None
    except (ValueError, RecursionError) as error:
        # Also for what is no UTF-8, has numbers of thousands of digits, or is nested too deeply.
        raise BadSettings(f"{path}: not TOML: {error}") from None


def _quoted(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"  # Which Python does not write out, and nobody wants to read.


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"


DEFAULT: Final = "default"
_PREFIX: Final = "PERDURE_"
_LIKENESS: Final = 0.8
"""Of a name to the one that was meant, from 0 to 1: all of them begin alike."""
_NOT_SETTINGS: Final = frozenset(
    {
        *("PERDURE_CONFIG", HANDED_ON, "PERDURE_PYTHON", "PERDURE_STOP_SECONDS"),
        *("PERDURE_LISTEN_FD", "PERDURE_INSTANCE", "PERDURE_URL"),
    }
)
"""What else is said by variables: where the settings are, what supervisors tell daemons, and what agents are told."""
_DEFAULTS: Final = Settings()
_ACCEPTED: Final[dict[type, tuple[type, ...]]] = {str: (str,), int: (str, int), float: (str, int, float)}
_TCP_HOST: Final = re.compile(r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]")
"""A name, an IPv4 address, or an IPv6 one in brackets; no `*`, which daemons could not call."""
_HOST: Final = re.compile(r"[a-z0-9_.-]+")
_HEADER: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_SECRET_HEADERS: Final = frozenset(
    {"authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "x-perdure-token"}
)
_CHECKS: Final = {"session_fields": _check_path, "hosts": _check_host}
_TABLE_READERS: Final[dict[str, Callable[[Any, str], dict[str, Any]]]] = {
    "providers": _provider_table,
    "account_aliases": _alias_table,
    "models": _model_table,
}
_OWN_PATHS: Final = frozenset({"v1", "healthz", "readyz", "metrics", "api", "ui"})
_RANGES: Final = (
    ("tick_seconds", 0.05, 3_600.0),
    ("ledger_days", 0, 36_500),
    ("session_days", 0, 36_500),
    ("daemons", 1, 64),
    ("notice_seconds", 0.0, 600.0),
    ("drain_seconds", 0.0, 3_600.0),
    ("outbox_writes", 100, 10_000_000),
    ("body_bytes", 1_024, 1_024**3),
)
