"""Settings: where each is taken from, what is refused and with which words, and that the example file is true."""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from worker.settings import (
    HANDED_ON,
    IPC_PATH_BYTES_MAX,
    LIST_ENTRIES_MAX,
    MODELS_MAX,
    NAME_CHARACTERS_MAX,
    NOT_OF_DAEMON,
    OF_WORKER,
    RELOADED,
    SECRET,
    TABLES,
    UNHEARD_SHOWN,
    WITHOUT_FLAG,
    BadSettings,
    Model,
    Settings,
    environment,
    load,
    loaded,
    unheard,
    variable_of,
    without_handed_on,
)

EXAMPLE = (Path(__file__).resolve().parents[2] / "perdure.example.toml").read_text("utf-8")


def from_file(tmp_path: Path, text: str, **environ: str) -> Settings:
    path = tmp_path / "perdure.toml"
    path.write_text(text, "utf-8")
    return load({}, {"PERDURE_CONFIG": str(path), **environ})


# -- order ---------------------------------------------------------------------------------------------------------


def test_setting_order_is_flag_environment_file_default(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("tick_seconds = 5\ndaemons = 5\ndrain_seconds = 5\n")
    found = load(
        {"config": str(path), "tick_seconds": "7"},
        {"PERDURE_TICK_SECONDS": "6", "PERDURE_DAEMONS": "6", "PERDURE_CONFIG": "/not/this/one"},
    )
    assert (found.tick_seconds, found.daemons, found.drain_seconds, found.log_level) == (7.0, 6, 5.0, "info")


def test_setting_in_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    assert from_file(tmp_path, "daemons = 3", PERDURE_DAEMONS="").daemons == 3


def test_setting_that_is_refused_is_named_by_where_it_stands(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"perdure\.toml: log_level: 'loud'"):
        from_file(tmp_path, 'log_level = "loud"')
    with pytest.raises(BadSettings, match=r"^PERDURE_LOG_LEVEL: 'loud'"):
        load({}, {"PERDURE_LOG_LEVEL": "loud"})
    with pytest.raises(BadSettings, match=r"^--listen: 'foo'"):
        load({"listen": "foo"}, {})


def test_settings_handed_on_as_environment_come_back(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('tick_seconds = 1.5\ntoken = "t"\nlisten = "0.0.0.0:80"\nlog_level = "error"')
    environ = {"PERDURE_CONFIG": str(path)}
    given = loaded({"log_level": "debug", "daemons": "3"}, environ)
    handed = environment(given)
    assert load({}, {**environ, **handed}) == given.settings
    assert (handed["PERDURE_LOG_LEVEL"], handed["PERDURE_DAEMONS"]) == ("debug", "3")


def test_settings_that_are_read_again_are_handed_on_from_flags_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('session_headers = ["x-mine"]\ndrain_seconds = 3\n[account_aliases]\na = "work"')
    handed = environment(loaded({"config": str(path), "tick_seconds": "7"}, {"PERDURE_BODY_BYTES": "5000"}))
    others = set(Settings.__struct_fields__) - RELOADED - TABLES
    assert set(handed) == {HANDED_ON, *(variable_of(name) for name in {*others, "tick_seconds"})}


def test_second_reading_sees_past_what_was_handed_on(tmp_path: Path) -> None:
    """A supervisor hands on what it read in the file, and what it was told otherwise."""
    path = tmp_path / "c.toml"
    path.write_text('runtime_dir = "/r"\ndaemons = 2\nlisten = "127.0.0.1:1"')
    environ = {"PERDURE_CONFIG": str(path), "PERDURE_LISTEN": "127.0.0.1:9"}
    child = {**environ, **environment(loaded({"daemons": "5", "state_dir": str(tmp_path)}, environ))}
    path.write_text('runtime_dir = "/k"\ndaemons = 3\nlisten = "127.0.0.1:2"')
    again = load({}, without_handed_on(child, Settings.__struct_fields__))
    assert (again.runtime_dir, again.daemons, again.listen) == ("/k", 5, "127.0.0.1:9")
    assert again.state_dir == str(tmp_path)
    # What is another program's to use is not looked at.
    assert load({}, without_handed_on(child, {"listen"})).runtime_dir == "/r"


def test_secret_is_not_handed_on(tmp_path: Path) -> None:
    assert "t0ken" not in str(environment(loaded({}, {"PERDURE_TOKEN": "t0ken"})))


def test_settings_that_need_a_restart_are_named_where_users_read() -> None:
    stuck = [name for name in Settings.__struct_fields__ if name not in RELOADED]
    operating = (Path(__file__).resolve().parents[2] / "docs" / "OPERATING.md").read_text("utf-8")
    (told,) = re.findall(r"Only (.*) need a restart", operating)
    assert re.findall(r"`(\w+)`", told) == stuck
    (told,) = re.findall(r"These need one:\n# (.*)\.", EXAMPLE)
    assert told.split(", ") == stuck


def test_every_setting_is_of_a_program() -> None:
    assert set(Settings.__struct_fields__) >= OF_WORKER | RELOADED | TABLES | SECRET
    assert NOT_OF_DAEMON <= OF_WORKER


def test_lists_tables_and_secrets_have_no_flag() -> None:
    defaults = {name: getattr(Settings(), name) for name in Settings.__struct_fields__}
    expected = {name for name, value in defaults.items() if isinstance(value, tuple | dict)} | {"token"}
    assert expected == WITHOUT_FLAG


# -- lists and tables ----------------------------------------------------------------------------------------------

LISTS = ["session_headers", "account_headers", "agent_headers", "parent_headers"]


@pytest.mark.parametrize("name", LISTS)
def test_list_of_headers_is_taken_from_the_environment_then_the_file(tmp_path: Path, name: str) -> None:
    text = f'{name} = ["X-One", "x_two"]'
    assert getattr(from_file(tmp_path, text), name) == ("x-one", "x_two")
    variable = {f"PERDURE_{name.upper()}": " X-Three ,x-four"}
    assert getattr(from_file(tmp_path, text, **variable), name) == ("x-three", "x-four")
    assert getattr(from_file(tmp_path, f"{name} = []"), name) == ()


def test_list_of_fields_keeps_the_case_of_its_keys(tmp_path: Path) -> None:
    assert from_file(tmp_path, 'session_fields = ["metadata.threadId", "a b.ü"]').session_fields == (
        "metadata.threadId",
        "a b.ü",
    )
    assert load({}, {"PERDURE_SESSION_FIELDS": "a.b, c"}).session_fields == ("a.b", "c")


def test_aliases_of_accounts_are_taken_from_the_file_alone(tmp_path: Path) -> None:
    text = '[account_aliases]\n4f1c = "Büro Köln"\n"user@example" = "home"'
    found = from_file(tmp_path, text, PERDURE_ACCOUNT_ALIASES="x")
    assert found.account_aliases == {"4f1c": "Büro Köln", "user@example": "home"}


def test_models_have_prices_and_limits_as_they_were_written(tmp_path: Path) -> None:
    text = """
        [models]
        "in-house 9b" = { input = 0.1, output = 2 }
        [models."azure/gpt-5"]
        input = 1.25
        cache_read = 0.125
        cache_write_5m = 0
        cache_write_1h = 3.75
        output = 10.0
        context_window = 400_000
        [models.big]
        context_window = 1_000_000
    """
    priced = {"input": "1.25", "cache_read": "0.125", "cache_write_5m": "0", "cache_write_1h": "3.75", "output": "10.0"}
    assert from_file(tmp_path, text).models == {
        "in-house 9b": Model(input=Decimal("0.1"), output=Decimal(2)),
        "azure/gpt-5": Model(**{name: Decimal(price) for name, price in priced.items()}, context_window=400_000),
        "big": Model(context_window=1_000_000),
    }


def test_models_beyond_any_number_are_refused(tmp_path: Path) -> None:
    text = "[models]\n" + "\n".join(f"m{n} = {{ context_window = 1 }}" for n in range(MODELS_MAX + 1))
    with pytest.raises(BadSettings, match="1001 models are more than 1000"):
        from_file(tmp_path, text)


def test_broken_value_in_the_file_does_not_matter_where_another_one_rules(tmp_path: Path) -> None:
    assert from_file(tmp_path, 'tick_seconds = "soon"', PERDURE_TICK_SECONDS="3").tick_seconds == 3.0


# -- what is refused -----------------------------------------------------------------------------------------------

BAD_FILES = {
    "typo": ("tick_second = 3", "unknown key 'tick_second'; did you mean 'tick_seconds'"),
    "unlike any": ("zzzz = 3", "unknown key 'zzzz'; known are .*tick_seconds"),
    "table for a key": ("[tick_seconds]\na = 1", "tick_seconds: .* is not a number"),
    "text for a number": ('tick_seconds = "soon"', "'soon' is not a number"),
    "truth for a number": ("daemons = true", "True is not a whole number"),
    "half a daemon": ("daemons = 1.5", "1.5 is not a whole number"),
    "endless daemons": ("daemons = inf", "inf is not a whole number"),
    "number for a text": ("anthropic_url = 12345", "12345 is not a text"),
    "list for a text": ('listen = ["a:1"]', "is not a text"),
    "text for a table": ('providers = "x"', "'x' is not a table"),
    "not a number at all": ("tick_seconds = nan", "nan is not between"),
    "too often": ("tick_seconds = 0", "0.0 is not between 0.05 and"),
    "too many": ("daemons = 1000", "1000 is not between 1 and 64"),
    "level": ('log_level = "loud"', "'loud' is not debug"),
    "not TOML": ("this is not toml", "not TOML"),
    "provider in perdure's place": ('[providers]\napi = "https://x.example"', "providers.api: a provider is"),
    "provider by number": ("[providers]\nx = 3", "providers.x: a provider is"),
    "provider's address": ('[providers]\nx = "ftp://x"', "is not http"),
    "provider that has a setting": (
        '[providers]\nanthropic = "https://x.example"',
        "setting of its own, anthropic_url",
    ),
    "text for a list": ("session_headers = 5", "session_headers: 5 is not a list of texts"),
    "numbers in a list": ("session_headers = [5]", "is not a list of texts"),
    "table for a list": ("[agent_headers]\na = 1", "is not a list of texts"),
    "header with a space": ('session_headers = ["x id"]', "'x id' is not the name of a header"),
    "header with a colon": ('parent_headers = ["x-id:"]', "parent_headers: 'x-id:' is not the name"),
    "header of no letters": ('agent_headers = [""]', "'' is not the name"),
    "header in letters of elsewhere": ('agent_headers = ["x-ïd"]', "is not the name"),
    "endless header": (f'agent_headers = ["{"x" * (NAME_CHARACTERS_MAX + 1)}"]', "is not the name"),
    "endless list": (f"session_fields = {[str(n) for n in range(LIST_ENTRIES_MAX + 1)]}", "33 names are more than 32"),
    "header twice": ('session_headers = ["x-id", "X-ID"]', "'x-id' stands there twice"),
    "header with two meanings": ('agent_headers = ["x-session-id"]', "x-session-id is one of session_headers already"),
    "header with a secret": ('account_headers = ["Authorization"]', "authorization carries a secret"),
    "field twice": ('session_fields = ["a.b", "a.b"]', "'a.b' stands there twice"),
    "field with an empty key": ('session_fields = ["a..b"]', "'a..b' is not keys joined by dots"),
    "field of nothing": ('session_fields = [""]', "'' is not keys"),
    "field on two lines": ('session_fields = ["a\\nb"]', "is not keys joined"),
    "aliases as a text": ('account_aliases = "x"', "'x' is not a table"),
    "alias of a number": ("[account_aliases]\na = 1", "account_aliases.a: an alias is a text"),
    "alias of nothing": ('[account_aliases]\na = ""', "account_aliases.a: an alias is a text"),
    "alias on two lines": ('[account_aliases]\na = "x\\ny"', "account_aliases.a: an alias is a text"),
    "format": ('log_format = "xml"', "'xml' is not text or json"),
    "models as a text": ('models = "x"', "'x' is not a table"),
    "model as a number": ("[models]\nx = 3", "models.x: a model is a table"),
    "model of nothing": ("[models.x]", "models.x: a model is a table"),
    "model without a name": ('[models.""]\ninput = 1\noutput = 1', "a model's name is a text"),
    "price by another name": ("[models.x]\ninputs = 1", "models.x: unknown key 'inputs'; did you mean 'input'"),
    "price as a text": ('[models.x]\ninput = "3"\noutput = 1', "models.x.input: '3' is not a number of dollars"),
    "price as a truth": ("[models.x]\ninput = true\noutput = 1", "models.x.input: True is not a number"),
    "price below nothing": ("[models.x]\ninput = -0.1\noutput = 1", "models.x.input: -0.1 is not between 0 and"),
    "price without end": ("[models.x]\ninput = inf\noutput = 1", "models.x.input: inf is not between"),
    "price that is none": ("[models.x]\ninput = 1\noutput = nan", "models.x.output: nan is not between"),
    "price beyond writing": (f"[models.x]\ninput = 0x{'f' * 6_000}\noutput = 1", "a number of thousands of digits"),
    "half a price": ("[models.x]\ninput = 3", "models.x: a price without output is none"),
    "price of reads alone": ("[models.x]\ncache_read = 3", "models.x: a price without input is none"),
    "half a token": ("[models.x]\ncontext_window = 1.5", "models.x.context_window: 1.5 is not a whole number"),
    "window of nothing": ("[models.x]\ncontext_window = 0", "models.x.context_window: 0 is not between 1 and"),
    "seconds beyond writing": (f"tick_seconds = 0x{'f' * 6_000}", "thousands of digits is not a number"),
    "other provider that has one": ('[providers]\nopenai = "https://x.example"', "setting of its own, openai_url"),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_file_that_is_wrong_is_refused_with_its_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadSettings, match=message) as caught:
        from_file(tmp_path, text)
    assert "perdure.toml" in str(caught.value) or "PERDURE_" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


BAD_VARIABLES = {
    "no port": ({"PERDURE_LISTEN": "127.0.0.1"}, "host:port"),
    "port of letters": ({"PERDURE_LISTEN": "127.0.0.1:http"}, "host:port"),
    "port in superscript": ({"PERDURE_LISTEN": "127.0.0.1:²"}, "host:port"),
    "port too large": ({"PERDURE_LISTEN": "127.0.0.1:65536"}, "host:port"),
    "every address, no token": ({"PERDURE_LISTEN": "0.0.0.0:7373"}, "set PERDURE_TOKEN"),
    "every v6 address, no token": ({"PERDURE_LISTEN": "[::]:7373"}, "set PERDURE_TOKEN"),
    "a name that only looks like loopback": ({"PERDURE_LISTEN": "127.0.0.1.example.com:7373"}, "set PERDURE_TOKEN"),
    "address of another kind": ({"PERDURE_ANTHROPIC_URL": "file:///etc/passwd"}, "PERDURE_ANTHROPIC_URL"),
    "address cut short": ({"PERDURE_OPENAI_URL": "http://[::1"}, "PERDURE_OPENAI_URL"),
    "address with a wild port": ({"PERDURE_OPENAI_URL": "http://a:99999"}, "PERDURE_OPENAI_URL"),
    "address with a question": ({"PERDURE_OPENAI_URL": "http://a/?key=1"}, "PERDURE_OPENAI_URL"),
    "worker over tcp without keys": (
        {"PERDURE_WORKER_URL": "tcp://127.0.0.1:1"},
        "`perdure keys DIRECTORY` makes them",
    ),
    "worker over tcp without a port": (
        {"PERDURE_WORKER_URL": "tcp://127.0.0.1", "PERDURE_CURVE_DIR": "/k"},
        "HOST:PORT",
    ),
    "worker over tcp at any port": (
        {"PERDURE_WORKER_URL": "tcp://127.0.0.1:0", "PERDURE_CURVE_DIR": "/k"},
        "HOST:PORT",
    ),
    "worker over tcp at a star": ({"PERDURE_WORKER_URL": "tcp://*:7374", "PERDURE_CURVE_DIR": "/k"}, "HOST:PORT"),
    "worker somewhere": ({"PERDURE_WORKER_URL": "/tmp/w.sock"}, "neither ipc://PATH nor tcp://"),
    "worker nowhere": ({"PERDURE_WORKER_URL": "ipc://"}, "absolute path"),
    "worker at the root": ({"PERDURE_WORKER_URL": "ipc:///"}, "names no socket"),
    "worker at its own lock": ({"PERDURE_WORKER_URL": "ipc:///run/worker.lock"}, "names no socket"),
    "certificates that are not there": ({"PERDURE_CA_FILE": "/not/there.pem"}, "/not/there.pem: No such file"),
    "certificates in a directory": ({"PERDURE_CA_FILE": "/tmp"}, "/tmp: Is a directory"),
    "certificates that are none": (
        {"PERDURE_CA_FILE": str(Path(__file__).with_name("writing.py"))},
        "no certificates in PEM form",
    ),
    "socket's path too long": ({"PERDURE_RUNTIME_DIR": "/" + "r" * 120}, "PERDURE_RUNTIME_DIR to a shorter"),
    "file that is not there": ({"PERDURE_CONFIG": "/not/there.toml"}, "/not/there.toml: No such file"),
    "file that is a directory": ({"PERDURE_CONFIG": "/tmp"}, "/tmp: Is a directory"),
    "list that ends in a comma": ({"PERDURE_SESSION_HEADERS": "x-id,"}, "PERDURE_SESSION_HEADERS: '' is not the name"),
    "number of letters": ({"PERDURE_DAEMONS": "two"}, "PERDURE_DAEMONS: 'two' is not a whole number"),
}


@pytest.mark.parametrize(("environ", "message"), BAD_VARIABLES.values(), ids=BAD_VARIABLES.keys())
def test_variable_that_is_wrong_is_refused_with_a_remedy(environ: dict[str, str], message: str) -> None:
    with pytest.raises(BadSettings, match=message):
        load({}, environ)


@pytest.mark.parametrize("user", ["agent:sk-ant-secret", ":sk-ant-secret", "sk-ant-secret"])
@pytest.mark.parametrize("setting", ["anthropic_url", "openai_url", "[providers]\nother"])
def test_credentials_in_a_provider_address_are_refused_and_not_quoted(tmp_path: Path, setting: str, user: str) -> None:
    with pytest.raises(BadSettings, match="no credentials") as caught:
        from_file(tmp_path, f'{setting} = "https://{user}@api.example/v1"')
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["två", "a b", "a\tb", "a\nb", "a\x00b"])
def test_token_that_no_header_carries_is_refused_and_not_quoted(token: str) -> None:
    with pytest.raises(BadSettings, match="PERDURE_TOKEN: only ASCII") as caught:
        load({}, {"PERDURE_TOKEN": token})
    assert token not in str(caught.value)


def test_token_that_is_a_number_is_refused_and_not_quoted(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="is not a text") as caught:
        from_file(tmp_path, "token = 1234567")
    assert "1234567" not in str(caught.value)


CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUdsJhCYs0LruosADSxZjOmGvGx6QwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjIxNzQ5MTZaGA8yMTI2MTAyOTE3NDkx
NlowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABFq0
032yVv6CIQEe+nDe8OJ8mV829S41LUdyk7v00TTE0MckkVihoO4n+5G171xeCs5K
jHlz7XvgwHoWXck7WGKjUzBRMB0GA1UdDgQWBBQ8YwpqJzM2fgXB6rbiZ3Ibkt/T
dDAfBgNVHSMEGDAWgBQ8YwpqJzM2fgXB6rbiZ3Ibkt/TdDAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIEwQioo/2nqvduxmR7akbEd28olyiXMbk6gq
PB/5SxeRAiEA4gorlP1fwRUZNkV9vU+vASE+RAqgxfc4+nmxicQLm2o=
-----END CERTIFICATE-----
"""


def test_certificates_in_pem_form_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text(CERTIFICATE)
    assert load({}, {"PERDURE_CA_FILE": str(path)}).ca_file == str(path)


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_loopback_needs_no_token(listen: str) -> None:
    assert load({}, {"PERDURE_LISTEN": listen}).listen_port == 1


def test_other_address_with_token_is_taken() -> None:
    assert load({}, {"PERDURE_LISTEN": "0.0.0.0:1", "PERDURE_TOKEN": "t"}).listen_host == "0.0.0.0"


def test_socket_path_of_the_longest_length_is_taken() -> None:
    path = "/" + "r" * (IPC_PATH_BYTES_MAX - 1)
    assert load({}, {"PERDURE_WORKER_URL": f"ipc://{path}"}).worker_url == f"ipc://{path}"
    with pytest.raises(BadSettings, match="107 bytes"):
        load({}, {"PERDURE_WORKER_URL": f"ipc://{path}r"})


# -- directories ---------------------------------------------------------------------------------------------------

PLACES: dict[str, tuple[dict[str, str], str, str]] = {
    "given": (
        {"PERDURE_STATE_DIR": "/s", "STATE_DIRECTORY": "/no", "PERDURE_RUNTIME_DIR": "/r", "RUNTIME_DIRECTORY": "/no"},
        "/s",
        "/r",
    ),
    "systemd's": (
        {"STATE_DIRECTORY": "/s:/other", "RUNTIME_DIRECTORY": "/r:/other", "XDG_RUNTIME_DIR": "/x"},
        "/s",
        "/r",
    ),
    "the user's": ({"PERDURE_STATE_DIR": "/s", "XDG_RUNTIME_DIR": "/x"}, "/s", "/x/perdure"),
    "under the state": ({"PERDURE_STATE_DIR": "/s"}, "/s", "/s/run"),
}


@pytest.mark.parametrize(("environ", "state", "runtime"), PLACES.values(), ids=PLACES.keys())
def test_directories_are_taken_in_the_promised_order(environ: dict[str, str], state: str, runtime: str) -> None:
    found = load({}, environ)
    assert (found.state_dir, found.runtime_dir) == (state, runtime)
    assert found.worker_url == f"ipc://{runtime}/worker.sock"
    assert found.database == Path(state) / "perdure.db"


def test_state_directory_without_any_is_under_the_xdg_state_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert load({}, {}).state_dir == "/xdg/perdure"


# -- the example ---------------------------------------------------------------------------------------------------


def uncommented() -> dict[str, Any]:
    """The example with its settings (not its prose) put in force."""
    lines = [line.removeprefix("# ") for line in EXAMPLE.splitlines() if re.match(r"# ([a-z_]+ = |\[[a-z_]+\])", line)]
    return tomllib.loads("\n".join(lines))


def test_example_has_every_setting_with_its_default() -> None:
    written = uncommented()
    defaults = {name: getattr(Settings(), name) for name in Settings.__struct_fields__}
    assert set(written) == set(defaults)
    assert all(written[name] for name in WITHOUT_FLAG - TABLES - {"token", "hosts"}), "a list is shown in full"
    for name in TABLES:
        written[name] = {}
    assert written == {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}


def test_example_as_it_is_changes_nothing(tmp_path: Path) -> None:
    assert tomllib.loads(EXAMPLE) == {}
    assert from_file(tmp_path, EXAMPLE) == load({}, {})


def test_example_says_something_about_every_setting() -> None:
    paragraphs = EXAMPLE.split("\n\n")
    for name in Settings.__struct_fields__:
        own = [p for p in paragraphs if re.search(rf"^# ({name} = |\[{name}\])", p, re.MULTILINE)]
        assert len(own) == 1, name
        assert not re.match(r"# [a-z_]+ = ", own[0]), f"{name} stands there without a word"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("PERDURE_TOKN", "PERDURE_TOKN is not looked at: did you mean PERDURE_TOKEN?"),
        ("PERDURE_STATEDIR", "did you mean PERDURE_STATE_DIR?"),
        ("PERDURE_CONFIG_FILE", "did you mean PERDURE_CONFIG?"),
        ("PERDURE_MODELS", "models is a table, and stands in the file"),
        ("PERDURE_SOMETHING_ELSE_ENTIRELY", "no setting has that name"),
    ],
)
def test_variable_that_nobody_looks_at_is_told_of_without_its_value(name: str, said: str) -> None:
    (found,) = unheard({name: "secret", "HOME": "/root", "PERDURE_TOKEN": "secret", "PERDURE_LISTEN_FD": "0"})
    assert said in found and "secret" not in found


def test_many_variables_of_another_program_are_not_all_told_of() -> None:
    assert len(unheard({f"PERDURE_X{number}": "" for number in range(100)})) == UNHEARD_SHOWN
