"""The facts that `perdure doctor` judges: looked up, one kind at a time.

One rule: looking changes nothing, costs nothing, and carries no key: a provider is connected to and sent nothing.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import resource
import socket
import ssl
import sys
import time
import xmlrpc.client
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from daemon import doctor
from daemon.verbs.asking import supervised
from daemon.verbs.keeping import faults_of
from daemon.verbs.progress import Progress
from daemon.verbs.reading import reading
from worker import backup as backups
from worker.copies import last_backup
from worker.records import newest_at
from worker.runtime import Fatal
from worker.settings import Settings, unheard
from worker.store import CHECK_BYTES_MAX, StoreBusy, StoreRefused, damaged, known_schema

CONNECT_SECONDS: Final = 3.0
"""How long a provider may take to be connected to, TLS included."""


def configuration_of(settings: Settings, file: str) -> doctor.Configuration:
    mode = Path(file).stat().st_mode & 0o777 if file else 0o600
    return doctor.Configuration(
        file=file,
        mode=mode,
        has_token=bool(settings.token),
        listen=settings.listen,
        unheard=unheard(os.environ),
    )


def directory_of(name: str, path: str) -> doctor.Directory:
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return doctor.Directory(name=name, path=path, exists=False)
    except PermissionError:
        return doctor.Directory(name=name, path=path, is_open=False)
    except NotADirectoryError:
        return doctor.Directory(name=name, path=path, is_directory=False)
    return doctor.Directory(
        name=name,
        path=path,
        is_directory=Path(path).is_dir(),
        uid=found.st_uid,
        own_uid=os.geteuid(),
        mode=found.st_mode & 0o777,
        is_writable=os.access(path, os.W_OK | os.X_OK),
        is_open=os.access(path, os.R_OK | os.X_OK),
    )


def room_of(settings: Settings) -> doctor.Room:
    place = next(path for path in (Path(settings.state_dir), *Path(settings.state_dir).parents) if path.is_dir())
    found = os.statvfs(place)
    return doctor.Room(
        path=str(place),
        free_bytes=found.f_bavail * found.f_frsize,
        free_files=found.f_favail if found.f_files else -1,
        is_read_only=bool(found.f_flag & os.ST_RDONLY),
        database_bytes=_size(settings.database),
    )


def database_of(path: Path) -> doctor.Database:
    shown, known = str(path), known_schema()
    try:
        if not path.exists():
            return doctor.Database(path=shown, known_schema=known, exists=False)
        with reading(path) as reader:
            schema = int(next(iter(reader.execute("PRAGMA user_version")))[0])
    except PermissionError:
        return doctor.Database(path=shown, is_open=False)
    except StoreRefused as error:
        return doctor.Database(path=shown, refusal=str(error))
    except (StoreBusy, Fatal) as error:
        return doctor.Database(path=shown, trouble=str(error))
    return doctor.Database(path=shown, schema=schema, known_schema=known)


def integrity_of(path: Path, progress: Progress, *, is_full: bool) -> doctor.Integrity:
    """A small database is looked at as at every start of the worker; `is_full`: any, to its last row."""
    size = _size(path)
    if not size or (size > CHECK_BYTES_MAX and not is_full):
        return doctor.Integrity(bytes=size)
    try:
        if is_full:
            held = backups.verify(path, faults_of, progress)
            return doctor.Integrity(
                bytes=size, looked="everything", rows=held.rows, damaged_snapshots=held.damaged_snapshots
            )
        progress("checking its structure", 0.0)
        with reading(path) as reader:
            said = [str(text) for (text,) in reader.execute("PRAGMA integrity_check(1)")]
    except StoreRefused as error:
        return doctor.Integrity(bytes=size, damage=str(error))
    except (StoreBusy, Fatal) as error:
        return doctor.Integrity(bytes=size, trouble=str(error))
    whole = said == ["ok"]
    damage = "" if whole else damaged(path, " ".join(said[0].split())[:200] if said else "SQLite says nothing")
    return doctor.Integrity(bytes=size, looked="structure", damage=damage)


def clock_of(path: Path) -> doctor.Clock:
    with reading(path) as reader:
        newest = newest_at(reader.execute)
    return doctor.Clock(ahead_seconds=newest / 1_000 - time.time(), is_kept=_is_clock_kept())


def backup_of(settings: Settings) -> doctor.Backup:
    last = last_backup(Path(settings.state_dir))
    if last is not None:
        return doctor.Backup(
            age_seconds=max(0.0, time.time() - last.at / 1_000), path=last.path, is_there=os.path.exists(last.path)
        )
    if not settings.database.exists():
        return doctor.Backup(has_rows=False)
    with reading(settings.database) as reader:
        return doctor.Backup(has_rows=bool(newest_at(reader.execute)))


def leftovers_of(database: Path) -> list[doctor.Left]:
    """What stands beside a database under names that perdure gives itself."""
    now = time.time()
    names = ("before-restore-*", "schema-*", "*partial*", "restoring-*")
    found = sorted({path for name in names for path in database.parent.glob(f"{database.name}.{name}")})
    stats = [(path.name, path.stat()) for path in found]
    return [doctor.Left(name, stat.st_size, max(0.0, now - stat.st_mtime)) for name, stat in stats]


def supervised_of(settings: Settings, pids: Mapping[str, int]) -> doctor.Supervised:
    """`pids`: of what runs on this machine, by name."""
    path = Path(settings.runtime_dir) / "sv.sock"
    if path.exists():
        try:
            states = supervised(path)
        except (OSError, http.client.HTTPException, xmlrpc.client.Error, ValueError):
            states = {}
        if states:
            return doctor.Supervised(by="supervisord", processes=states, is_anything_running=bool(pids))
    units = sorted({unit for pid in pids.values() if (unit := _unit(pid))})
    by = f"systemd ({', '.join(units)})" if units else ""
    return doctor.Supervised(by=by, is_anything_running=bool(pids))


def versions_of(others: Mapping[str, str]) -> doctor.Versions:
    libraries = {"python": sys.version.partition(" ")[0], "sqlite": version("apsw"), "pyzmq": version("pyzmq")}
    return doctor.Versions(own=version("perdure"), others=others, libraries=libraries)


def descriptors_of(pids: Mapping[str, int]) -> doctor.Descriptors:
    used = {name: counted for name, pid in pids.items() if (counted := _descriptors(pid))}
    return doctor.Descriptors(limit=resource.getrlimit(resource.RLIMIT_NOFILE)[1], used=used)


def providers_of(settings: Settings) -> list[doctor.Provider]:
    """Connected to, all at once, and hung up on again."""
    tls = ssl.create_default_context()
    if settings.ca_file:
        tls.load_verify_locations(cafile=settings.ca_file)
    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(_provider, settings.provider_urls, settings.provider_urls.values(), repeat(tls)))


def _provider(name: str, url: str, tls: ssl.SSLContext) -> doctor.Provider:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    started = time.monotonic()
    try:
        with socket.create_connection((host, port), CONNECT_SECONDS) as connection:
            if parts.scheme == "https":
                with tls.wrap_socket(connection, server_hostname=host):
                    pass
    except ssl.SSLCertVerificationError as error:
        return doctor.Provider(name=name, url=url, trouble=error.verify_message, is_certificate=True)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return doctor.Provider(name=name, url=url, trouble=str(said))
    return doctor.Provider(name=name, url=url, milliseconds=1_000 * (time.monotonic() - started))


def _unit(pid: int) -> str:
    """The systemd service a process belongs to, if its name says that it is ours."""
    try:
        places = Path(f"/proc/{pid}/cgroup").read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    units = (place.rpartition("/")[2] for place in places)
    return next((unit for unit in units if unit.startswith("perdure") and unit.endswith(".service")), "")


def _descriptors(pid: int) -> tuple[int, int] | None:
    """How many a process has, and may have; None where that is not ours to see."""
    try:
        used = len(os.listdir(f"/proc/{pid}/fd"))
        lines = Path(f"/proc/{pid}/limits").read_text("ascii").splitlines()
        limit = next(line.split()[3] for line in lines if line.startswith("Max open files"))
        return used, int(limit)
    except (OSError, ValueError, StopIteration, IndexError):
        return None


def _is_clock_kept() -> bool | None:
    """What the kernel says of its own clock (adjtimex with nothing to change); None where it does not."""
    try:
        timex = ctypes.create_string_buffer(_TIMEX_BYTES)
        if ctypes.CDLL(None).adjtimex(timex) < 0:
            return None
        return not int.from_bytes(timex.raw[_STATUS : _STATUS + 4], sys.byteorder) & _STA_UNSYNC
    except (OSError, AttributeError):
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


_TIMEX_BYTES: Final = 512
"""More than any system's `struct timex`; zeroed, it asks for no change."""
_STATUS: Final = 40
"""Where `status` stands in it, on 64-bit systems."""
_STA_UNSYNC: Final = 0x40
