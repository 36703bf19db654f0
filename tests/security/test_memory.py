"""What a crash leaves behind, and what other programs of the same user can read of a running daemon: nothing.

One rule: each check is first made on a program that does not protect itself, so that it could fail here; where the
system writes no cores into files, and where nobody can play another user, these tests say so.

Theory.  A daemon holds keys and prompts while it works, and its environment holds the token.  It is made to work by a
provider that holds its answer back, and then dies of a signal that dumps core.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.processes import DEADLINE_SECONDS, Gateway, eventually
from tests.provider import ScriptedProvider
from tests.system.turns import send_turn

ROOT: Final = Path(__file__).resolve().parents[2]
MARK: Final = "MARKED-IN-MEMORY-91c4"
UNLIMITED: Final = ("/bin/sh", "-c", 'ulimit -c unlimited 2>/dev/null; exec "$@"', "sh")
"""Before a command: as a careless operator, or a container's default, would run it."""
UNPROTECTED: Final = f"mark = {MARK!r}; print('up', flush=True); import signal; signal.pause()"
PR_SET_DUMPABLE: Final = 4
FATAL_SIGNALS: Final = (signal.SIGSEGV, signal.SIGABRT)


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-"))
    yield made
    shutil.rmtree(made)


def cores_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if "core" in path.name and path.is_file()]


def unprotected_leaves_a_core(directory: Path) -> bool:
    command = [*UNLIMITED, sys.executable, "-I", "-c", UNPROTECTED]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSEGV)
        process.wait(DEADLINE_SECONDS)
    return any(MARK.encode() in core.read_bytes() for core in cores_in(directory))


@pytest.mark.parametrize("number", FATAL_SIGNALS, ids=lambda each: each.name)
def test_program_that_crashes_at_work_leaves_no_memory_behind(directory: Path, number: signal.Signals) -> None:
    can_dump = unprotected_leaves_a_core(directory)
    programs = {name: [*UNLIMITED, sys.executable, "-P", "-m", name] for name in ("worker", "daemon")}
    with ScriptedProvider() as provider, Gateway(provider, programs=programs, token=MARK) as gateway:
        gateway.start()
        with gateway.client() as client:
            send_turn(client, "messages", f"{MARK} hold:crash", stream=True, headers=[("x-perdure-token", MARK)])
            provider.wait_held("crash")
            for name in ("daemon", "worker"):
                limits = Path(f"/proc/{gateway.pid(name)}/limits").read_text("ascii")
                assert next(line for line in limits.splitlines() if "core" in line).split()[4:6] == ["0", "0"]
                gateway.kill(name, number)
                assert gateway.wait_stopped(name) == -number
            provider.release("crash")
        assert not cores_in(gateway.directory)
        found = [path for path in gateway.directory.rglob("*") if path.is_file() and MARK.encode() in path.read_bytes()]
        assert not found
    if not can_dump:
        pytest.skip("this system writes no cores into files; the limits were looked at")


PROTECTED: Final = """
import ctypes, os, resource
from worker import runtime
if "NO_LIMIT" in os.environ:
    resource.setrlimit = lambda *_: None
runtime.keep_memory_private()
if "DUMPABLE" in os.environ:
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)
os.abort()
""".replace("PR_SET_DUMPABLE", str(PR_SET_DUMPABLE))


def aborted(directory: Path, **environ: str) -> list[Path]:
    """The cores that a program leaves which protects itself; `environ` takes a protection away."""
    done = subprocess.run(
        [*UNLIMITED, sys.executable, "-P", "-c", PROTECTED],
        cwd=directory,
        env={"PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == -signal.SIGABRT, done.stderr
    return cores_in(directory)


def test_each_of_the_two_protections_keeps_a_core_from_being_written(directory: Path) -> None:
    if not unprotected_leaves_a_core(directory):
        pytest.skip("this system writes no cores into files")
    for core in cores_in(directory):
        core.unlink()
    assert not aborted(directory)
    assert not aborted(directory, NO_LIMIT="1")
    assert not aborted(directory, DUMPABLE="1")
    assert aborted(directory, NO_LIMIT="1", DUMPABLE="1"), "without both there is a core"


BECOME: Final = (
    "import ctypes, os, signal, sys; from worker.runtime import keep_memory_private; user = int(sys.argv[1]);"
    "os.setgroups([]); os.setgid(user); os.setuid(user);"
    # Whoever changes its user is as closed as if it had asked for it: open it, as every program starts.
    f"ctypes.CDLL(None).prctl({PR_SET_DUMPABLE}, 1);"
)
WAIT: Final = "print('up', flush=True); signal.pause()"
READ: Final = "print(open('/proc/' + sys.argv[2] + '/environ').read())"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can play another user")
def test_running_program_shows_its_environment_to_no_program_of_its_user() -> None:
    with as_nobody(BECOME + WAIT) as program:
        assert MARK in read_by_nobody(program), "without the protection it is readable"
    with as_nobody(BECOME + "keep_memory_private();" + WAIT) as program:
        said = read_by_nobody(program)
    assert "PermissionError" in said and MARK not in said


@contextmanager
def as_nobody(script: str) -> Iterator[subprocess.Popen[str]]:
    environ = {"PYTHONPATH": str(ROOT), "PERDURE_TOKEN": MARK}
    command = [sys.executable, "-P", "-c", script, str(pwd.getpwnam("nobody").pw_uid)]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None and program.stdout.readline() == "up\n"
        yield program
        program.kill()


def read_by_nobody(program: subprocess.Popen[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", BECOME + READ, str(pwd.getpwnam("nobody").pw_uid), str(program.pid)],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    return done.stdout + done.stderr


def test_supervised_programs_still_die_with_their_supervisor(directory: Path) -> None:
    """The kernel forgets that wish when a program changes who it is; protecting itself is no such change."""
    script = (
        "import os, subprocess, sys; child = subprocess.Popen([sys.executable, '-P', '-m', 'worker'], "
        "env={**os.environ, 'SUPERVISOR_ENABLED': '1'}); print(child.pid, flush=True); import signal; signal.pause()"
    )
    environ = {"PATH": os.environ["PATH"], "PERDURE_STATE_DIR": str(directory)}
    supervisor = subprocess.Popen([sys.executable, "-I", "-c", script], env=environ, stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    child = int(supervisor.stdout.readline())
    eventually(lambda: (directory / "run" / "worker.sock").exists(), what="the worker is ready")
    supervisor.kill()
    supervisor.wait(DEADLINE_SECONDS)
    supervisor.stdout.close()
    eventually(lambda: not is_running(child), what="the worker has ended too")


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
