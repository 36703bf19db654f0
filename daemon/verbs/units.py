"""The verb `install-units`: systemd units for this installation, written, shown or taken away.

One rule: what it writes it can write again and take away again; what an operator wrote — the configuration, drop-ins,
the database — it never touches.

Theory.  The units are templates in `systemd/`; a word between @ signs stands for what differs between installations:
where Python is, the address, how long a stop may take.  The services run as users of their own behind walls, so an
installation that those users can not read is refused here, where somebody reads the reason, and not by a service that
does not start.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Final
from urllib.parse import quote

from daemon.verbs.parsing import Verbs, add_verb
from daemon.verbs.running import STOP_MARGIN_SECONDS
from worker import runtime
from worker.runtime import Fatal
from worker.settings import Settings, load

UNITS: Final = Path("/etc/systemd/system")
SYSUSERS: Final = Path("/etc/sysusers.d/perdure.conf")
CONFIGURATION: Final = Path("/etc/perdure/perdure.toml")
STATE: Final = "/var/lib/perdure"
NAMES: Final = (
    "perdure.target",
    "perdure-worker.service",
    "perdure-daemon@.socket",
    "perdure-daemon@.service",
    "perdure-backup.service",
    "perdure-backup.timer",
)
SYSUSERS_NAME: Final = "perdure.sysusers.conf"
HIDDEN: Final = {
    "ProtectHome": ("/home", "/root", "/run/user"),
    "PrivateTmp": ("/tmp", "/var/tmp"),  # noqa: S108 - compared, not written to
}
"""What the units take out of the services' sight, by the setting that does."""
SYSTEMCTL_SECONDS: Final = 20.0
"""How long the service manager may take to say what runs."""


def add(verbs: Verbs) -> None:
    does = "write the systemd units for this installation, and say what to run next"
    place = ("listen", "drain_seconds")
    made = add_verb(verbs, "install-units", "sudo perdure install-units", does, place, act=install_units)
    made.example = "Example:  perdure install-units --dry-run      then:  sudo perdure install-units"
    made.add_argument(
        "--directory", metavar="DIR", type=Path, help=f"all of it there, instead of {UNITS} and {SYSUSERS.parent}"
    )
    made.add_argument("--dry-run", action="store_true", help="show what would be written")
    made.add_argument("--remove", action="store_true", help="take away what was written")


def install_units(settings: Settings, options: argparse.Namespace) -> int:
    """Write the units, show them, or remove them."""
    directory, sysusers = _places(options.directory)
    if options.remove:
        return _remove(directory, sysusers, is_system=options.directory is None)
    configuration = Path(options.config or os.environ.get("PERDURE_CONFIG") or CONFIGURATION).absolute()
    files = _rendered(_of_services(settings, options, configuration), configuration, directory, sysusers)
    hindrance = unreachable(_needed())
    if hindrance and options.directory is None and not options.dry_run:
        raise Fatal(runtime.EXIT_CONFIGURATION, hindrance)
    if options.dry_run:
        print("\n".join(f"# ==> {path}\n{text}" for path, text in files.items()), end="")
    else:
        if options.directory is None and configuration == CONFIGURATION and not configuration.exists():
            files[configuration] = _first_configuration(settings)
        _write_all(files)
        print(_next_steps(directory, sysusers, is_system=options.directory is None))
    if hindrance:
        print(f"perdure: warning: {hindrance}", file=sys.stderr)
    return runtime.EXIT_OK


def _places(directory: Path | None) -> tuple[Path, Path]:
    """Where units go, and where the file that makes the user goes."""
    if directory is None:
        return UNITS, SYSUSERS
    return directory.absolute(), directory.absolute() / SYSUSERS_NAME


def _of_services(settings: Settings, options: argparse.Namespace, configuration: Path) -> Settings:
    """The settings as the services will find them: those of their file, where none was named."""
    if options.config or not configuration.exists():
        return settings
    named = {name: value for name in ("listen", "drain_seconds") if (value := getattr(options, name)) is not None}
    return load({**named, "config": str(configuration)}, os.environ)


# -- writing -------------------------------------------------------------------------------------------------------


def _rendered(settings: Settings, configuration: Path, directory: Path, sysusers: Path) -> dict[Path, str]:
    templates = _templates()
    words = {
        "python": _command(Path(sys.executable)),
        "perdure": _command(_console_script()),
        "listen": _listen_stream(settings),
        "stop_seconds": str(int(settings.drain_seconds) + STOP_MARGIN_SECONDS),
        "configuration": _quoted(str(configuration)),
        "documentation": f"file://{quote(str(templates / 'README.md'))}".replace("%", "%%"),
    }
    files = {directory / name: fill((templates / name).read_text("utf-8"), words) for name in NAMES}
    return {**files, sysusers: (templates / SYSUSERS_NAME).read_text("utf-8")}


def fill(template: str, words: Mapping[str, str]) -> str:
    """Put words in the place of their names between @ signs; every name must be known."""
    return re.sub(r"@([a-z_]+)@", lambda found: words[found[1]], template)


def _templates() -> Path:
    """In a package they are among the daemon's files, in a checkout at the top."""
    packaged = Path(str(resources.files("daemon"))) / "systemd"
    return packaged if packaged.exists() else packaged.parent.parent / "systemd"


def _console_script() -> Path:
    return Path(sys.executable).with_name("perdure")


def _command(path: Path) -> str:
    """A program's path as ExecStart= takes it."""
    return _quoted(str(path)).replace("$", "$$")


def _quoted(text: str) -> str:
    """As systemd reads it back: % begins a specifier, and blanks end a word."""
    text = text.replace("%", "%%")
    if not re.search(r"[\s\"'\\;]", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _listen_stream(settings: Settings) -> str:
    """The address for a socket unit, which knows no names."""
    host, port = settings.listen_host, settings.listen_port
    if not port:
        raise Fatal(runtime.EXIT_CONFIGURATION, f"PERDURE_LISTEN: {settings.listen}: nobody would know the port")
    if host == "localhost":
        host = "127.0.0.1"
    if not re.fullmatch(r"[0-9.]+|[0-9A-Fa-f:]+", host):
        remedy = "give its address as numbers: --listen 127.0.0.1:7373"
        raise Fatal(runtime.EXIT_CONFIGURATION, f"{settings.listen}: systemd listens on no name; {remedy}")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _first_configuration(settings: Settings) -> str:
    """The example, with what is so on this installation; from then on it is the operator's."""
    packaged = Path(str(resources.files("daemon"))) / "perdure.example.toml"
    example = packaged if packaged.exists() else packaged.parent.parent / "perdure.example.toml"
    text = example.read_text("utf-8")
    said = {"state_dir": f'"{STATE}"', "runtime_dir": '"/run/perdure"', "listen": f'"{_listen_stream(settings)}"'}
    for name, value in said.items():
        text, count = re.subn(rf"(?m)^# {name} = .*$", f"{name} = {value}", text)
        assert count == 1, name
    first = "# perdure's settings on this machine, read by its services and, named in PERDURE_CONFIG, by the command.\n"
    secrets = (
        "# Everybody here may read it; a token belongs into /etc/perdure/perdure.env (PERDURE_TOKEN=…, mode 0600).\n#\n"
    )
    return f"{first}{secrets}{text}"


def _write_all(files: Mapping[Path, str]) -> None:
    for path, text in files.items():
        try:
            is_new = _write(path, text)
        except OSError as error:
            remedy = "run it as root (sudo), or name a --directory of yours"
            raise Fatal(runtime.EXIT_CONFIGURATION, f"{path}: {error.strerror}; {remedy}") from None
        print(f"{'wrote' if is_new else 'as it was':<9}  {path}")


def _write(path: Path, text: str) -> bool:
    """Whole or not at all, and readable by everybody; False where it stands so already."""
    if path.is_file() and path.read_text("utf-8") == text:
        return False
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.new")
    partial.write_text(text, "utf-8")
    partial.chmod(0o644)
    partial.replace(path)
    return True


def _next_steps(directory: Path, sysusers: Path, *, is_system: bool) -> str:
    if not is_system:
        return f"\nNext: put {sysusers.name} into {SYSUSERS.parent} and the others of {directory} into {UNITS}"
    steps = [
        f"systemd-sysusers {sysusers}",
        "systemctl daemon-reload",
        "systemctl enable --now perdure.target perdure-backup.timer",
        "systemctl status 'perdure-*.service'",
    ]
    lines = ["", "Next:", *(f"  {step}" for step in steps)]
    return "\n".join([*lines, f"Settings are in {CONFIGURATION}; after an upgrade: systemctl restart perdure.target"])


# -- can the services read it? -------------------------------------------------------------------------------------


def _needed() -> list[Path]:
    """What the services execute and read of this installation."""
    executable = Path(sys.executable)
    packages = [Path(str(resources.files(name))) for name in ("daemon", "worker", "msgspec")]
    return [executable, executable.resolve(), _console_script(), Path(sysconfig.get_path("stdlib")), *packages]


def unreachable(paths: Iterable[Path]) -> str:
    """Why the services' users would not find this installation, with the remedy; "" when they do."""
    for path in paths:
        if why := next(_obstacles(path), ""):
            return (
                f"{path}: {why}, so the services could not start; install perdure where everybody can read it, with a "
                "Python that is such a place too (/usr/bin/python3 -m venv /opt/perdure), and run its `perdure "
                "install-units`"
            )
    return ""


def _obstacles(path: Path) -> Iterator[str]:
    for setting, roots in HIDDEN.items():
        for root in roots:
            if path.is_relative_to(root):
                yield f"{setting}= hides {root} from services"
    for place in (*reversed(path.parents), path):
        try:
            mode = place.stat().st_mode
        except OSError as error:
            yield f"{place}: {error.strerror}"
            return
        needed = stat.S_IROTH if place == path and stat.S_ISREG(mode) else stat.S_IXOTH
        if not mode & needed:
            yield f"{place} is closed to other users (chmod o+rX)"


# -- taking away ---------------------------------------------------------------------------------------------------


def _remove(directory: Path, sysusers: Path, *, is_system: bool) -> int:
    if is_system and (running := _running()):
        remedy = "`systemctl stop perdure.target perdure-backup.timer` first, and wait until they are down"
        raise Fatal(runtime.EXIT_UNAVAILABLE, f"{running} runs; {remedy}")
    found = [path for path in (*(directory / name for name in NAMES), sysusers) if path.is_file()]
    try:
        for path in [*_links(directory), *found]:
            path.unlink()
            print(f"removed    {path}")
        for place in (directory / "perdure.target.wants",):
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
    except OSError as error:
        raise Fatal(runtime.EXIT_CONFIGURATION, f"{error.filename}: {error.strerror}; run it as root (sudo)") from None
    kept = [str(path) for path in (CONFIGURATION.parent, Path(STATE), *directory.glob("perdure*.d")) if path.exists()]
    print(f"\nNext:\n  systemctl daemon-reload\nKept: {', '.join(kept) or 'nothing'}, and the user perdure")
    return runtime.EXIT_OK


def _links(directory: Path) -> list[Path]:
    """What `systemctl enable` made of our units, instances included."""
    ours = re.compile("|".join(re.escape(name).replace("@", "@[^/]*") for name in NAMES))
    return [
        path for path in sorted(directory.glob("*.wants/perdure*")) if path.is_symlink() and ours.fullmatch(path.name)
    ]


def _running() -> str:
    """A unit of ours that is up, "" when none is or systemd does not run here."""
    command = [
        "systemctl",
        "list-units",
        "--plain",
        "--no-legend",
        "--full",
        "--state=active,activating,deactivating,reloading",
        "perdure*",
    ]
    try:
        listed = subprocess.run(  # noqa: S603 - fixed words
            command, capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next((line.split()[0] for line in listed.splitlines() if line.strip()), "")
