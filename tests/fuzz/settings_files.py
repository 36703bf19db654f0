"""Target: the configuration: a file, the environment and flags.

What must hold: settings, or a BadSettings of one printable line that is not too long to read and quotes no secret; and
settings that were taken are taken again when they are handed on as environment.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec.structs import asdict

from tests.fuzz.coverage import ROOT, Edges
from tests.fuzz.guided import Target
from worker.configured import changes, listed, table
from worker.settings import MESSAGE_CHARACTERS_MAX, WITHOUT_FLAG, BadSettings, Settings, environment, load, loaded

PART: Final = b"\x1c"
"""Between the file, the environment and the flags in an input."""
SECRET: Final = "zebra-7f"
NAMES: Final = [name.encode() for name in Settings.__struct_fields__]


@contextmanager
def opened(_edges: Edges) -> Iterator[Target]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-") as directory:
        path = Path(directory) / "perdure.toml"
        tokens = [*NAMES, *(b"PERDURE_" + name.upper() + b"=" for name in NAMES), *_TOKENS]
        yield Target(check=lambda data: check(data, path), seeds=_seeds(), tokens=tokens)


def check(data: bytes, path: Path) -> None:
    text, variables, flags = [*data.split(PART), b"", b""][:3]
    path.write_bytes(text)
    environ = {"HOME": "/nowhere", "PERDURE_CONFIG": str(path), **_pairs(variables)}
    given = {name: value for name, value in _pairs(flags).items() if name not in WITHOUT_FLAG}
    try:
        read = loaded(given, environ)
    except BadSettings as error:
        message = str(error)
        assert message.isprintable(), f"not one line: {message[:300]!r}"
        assert len(message) <= MESSAGE_CHARACTERS_MAX + len("…"), f"{len(message)} characters"
        is_told = SECRET in environ.get("PERDURE_TOKEN", "") and data.count(SECRET.encode()) == 1
        assert not is_told or SECRET not in message, "the token is quoted"
        return
    settings = read.settings
    assert json.dumps(listed(read)) and table(read, 80)
    lists = {name: ",".join(value) for name, value in asdict(settings).items() if isinstance(value, tuple)}
    handed_on = {**environment(read), **{f"PERDURE_{name.upper()}": value for name, value in lists.items()}}
    again = load(
        {}, {"HOME": "/nowhere", "PERDURE_CONFIG": environ["PERDURE_CONFIG"], **_pairs(variables), **handed_on}
    )
    differing = [name for name in Settings.__struct_fields__ if getattr(again, name) != getattr(settings, name)]
    empty = {name for name in lists if not lists[name]}  # An empty variable is an unset one.
    assert not set(differing) - empty, differing
    assert changes(settings, again, set(differing)) == changes(settings, again, Settings.__struct_fields__)


def _pairs(lines: bytes) -> dict[str, str]:
    """Names and values as a process gets them: no NUL in either, other bytes as they are."""
    pairs = (line.replace(b"\0", b"").decode("utf-8", "surrogateescape").partition("=") for line in lines.split(b"\n"))
    return {name: value for name, _, value in pairs if name}


_TOKENS: Final = [
    *(
        b"=",
        b"\n",
        b'"',
        b"'''",
        b"[providers]\n",
        b"[account_aliases]\n",
        b"[models.m]\n",
        b"\\u0000",
        b"\\n",
        b"\x1c",
        b"\xff",
        b"~",
    ),
    *(b"~nobody/x", b"tcp://", b"ipc://", b"http://", b"https://[::1", b"@", b"127.0.0.1:0", b"0.0.0.0:1", b"[::]:1"),
    *("١".encode(), b"nan", b"inf", b"1979-05-27", b"x" * 300, b"config=", b"{", b"[", b"true", b"a.b.c", b",,"),
]


def _seeds() -> list[bytes]:
    example = (ROOT / "perdure.example.toml").read_bytes()
    used = b"\n".join(line.removeprefix(b"# ") for line in example.split(b"\n") if b" = " in line)
    variables = (
        b"PERDURE_LISTEN=127.0.0.1:7000\nPERDURE_TOKEN=%s\nPERDURE_TICK_SECONDS=0.5\nPERDURE_DAEMONS=4\n"
        b"PERDURE_STATE_DIR=/tmp/pd-x\nPERDURE_SESSION_HEADERS=x-a,x-b\nPERDURE_SESSION_FIELDS=a.b,c\n"
        b"PERDURE_ANTHROPIC_URL=http://127.0.0.1:1/prefix\nPERDURE_WORKER_URL=ipc:///tmp/pd-x/w.sock"
    ) % SECRET.encode()
    small = b'listen = "127.0.0.1:1"\n[providers]\nlocal = "http://x:1"\n[account_aliases]\nacc = "me"\n'
    small += b"[models.m]\ninput = 1\noutput = 2\n"
    far = b'worker_url = "tcp://127.0.0.1:9"\ncurve_dir = "/tmp/pd-k"\nca_file = "/etc/hosts"\nbody_bytes = 4096\n'
    return [
        PART.join(parts)
        for parts in (
            (example, b"", b""),
            (used, variables, b"daemons=2"),
            (small, variables, b"listen=[::1]:5\ntick-seconds=1\ntick_seconds=9"),
            (far, b"STATE_DIRECTORY=/a:/b\nRUNTIME_DIRECTORY=/c\nXDG_RUNTIME_DIR=/d", b"log_level=debug"),
        )
    ]
