"""Who can reach what perdure keeps: modes of files and sockets, and directories that others could change.

One rule: other users are real ones, played by root in a child process; without root these tests say that they can not.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.processes import Gateway, eventually
from tests.provider import ScriptedProvider
from tests.system.turns import take_turn
from worker import runtime
from worker.runtime import EXIT_CONFIGURATION, Fatal, private_directory

DEADLINE_SECONDS: Final = 60.0
NOBODY: Final = "nobody"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can play another user")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that other users can enter."""
    made = Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- modes -----------------------------------------------------------------------------------------------------------


def test_everything_perdure_makes_is_its_users_alone() -> None:
    with ScriptedProvider() as provider, Gateway(provider, tick_seconds=0.1) as gateway:
        # As the most careless of shells would start it; the directories are there only if perdure makes them.
        old = os.umask(0o000)
        try:
            gateway.start()
        finally:
            os.umask(old)
        with gateway.client() as client:
            assert take_turn(client, "messages", "hello").complete
        eventually(lambda: (gateway.directory / "run" / "hash.key").exists())
        made = [path for path in gateway.directory.rglob("*") if path.suffix != ".log"]
        assert {path.name for path in made} >= {"run", "worker.sock", "hash.key", "perdure.db", "perdure.db-wal"}
        modes = {path.name: oct(mode_of(path)) for path in made}
        expected = {path.name: oct(0o700 if path.is_dir() else 0o600) for path in made}
        assert modes == expected


# -- directories that others could change ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777, 0o720])
def test_directory_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    with pytest.raises(Fatal, match="chmod go-w") as caught:
        private_directory(tmp_path / "run")
    assert caught.value.status == EXIT_CONFIGURATION
    assert mode_of(tmp_path / "run") == mode, "what is not ours to decide is left as it is"


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_directory_that_others_can_only_read_is_taken_as_it_is(tmp_path: Path, mode: int) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    assert mode_of(private_directory(tmp_path / "run")) == mode


def test_directory_behind_a_link_of_ours_is_taken(tmp_path: Path) -> None:
    """As systemd's dynamic users have it, and who moved the state to a larger disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    assert private_directory(tmp_path / "run") == tmp_path / "run"


def own_directory(path: Path, nobody: pwd.struct_passwd) -> None:
    path.mkdir()
    os.chown(path, nobody.pw_uid, nobody.pw_gid)


def own_link(path: Path, nobody: pwd.struct_passwd) -> None:
    path.with_name("target").mkdir()
    path.symlink_to("target")
    os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)


@needs_root
@pytest.mark.parametrize("trap", [own_directory, own_link])
@pytest.mark.parametrize("place", ["STATE", "RUNTIME"])
def test_directory_that_another_user_laid_out_is_refused(
    shared: Path, place: str, trap: Callable[[Path, pwd.struct_passwd], None]
) -> None:
    trap(shared / "trap", pwd.getpwnam(NOBODY))
    environ = {"PERDURE_STATE_DIR": str(shared / "state"), f"PERDURE_{place}_DIR": str(shared / "trap")}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "worker"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == EXIT_CONFIGURATION and "belongs to another user" in done.stderr
    assert not list((shared / "trap").iterdir()), "nothing was put into it"


# -- the socket and another user -------------------------------------------------------------------------------------


KNOCK: Final = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1]); print('in')"


def knocks(path: Path, *, group: int | None = None) -> str:
    """What becomes of another user's attempt to speak to the worker."""
    nobody = pwd.getpwnam(NOBODY)
    done = subprocess.run(
        # A python that every user can run.
        ["/usr/bin/env", "python3", "-I", "-c", KNOCK, str(path)],
        env={"PATH": "/usr/bin:/bin"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[] if group is None else [group],
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1].partition(":")[0]


@pytest.fixture
def other_python() -> None:
    if not Path("/usr/bin/python3").exists():
        pytest.skip("no python3 that another user can run")


@needs_root
@pytest.mark.usefixtures("other_python")
def test_socket_is_closed_to_other_users(shared: Path) -> None:
    with ScriptedProvider() as provider, Gateway(provider, runtime_dir=shared / "run") as gateway:
        gateway.start()
        assert knocks(shared / "run" / "worker.sock") == "PermissionError"
        # Nor is it the directory alone that keeps them out.
        (shared / "run").chmod(0o755)
        assert knocks(shared / "run" / "worker.sock") == "PermissionError"
        assert gateway.readyz() is not None


@needs_root
@pytest.mark.usefixtures("other_python")
def test_socket_is_open_to_members_of_the_group_alone(shared: Path) -> None:
    group = next(entry for entry in grp.getgrall() if entry.gr_gid not in (0, pwd.getpwnam(NOBODY).pw_gid))
    with (
        ScriptedProvider() as provider,
        Gateway(provider, runtime_dir=shared / "run", group=group.gr_name) as gateway,
    ):
        gateway.start()
        run, worker_socket = shared / "run", shared / "run" / "worker.sock"
        assert (mode_of(run), run.stat().st_gid) == (0o750, group.gr_gid)
        assert (mode_of(worker_socket), worker_socket.stat().st_gid) == (0o660, group.gr_gid)
        assert knocks(worker_socket, group=group.gr_gid) == "in"
        assert knocks(worker_socket) == "PermissionError"
        # The group gets the socket, not what lies beside it.
        assert {mode_of(path) for path in run.iterdir() if path.is_file()} == {0o600}
        assert [(path.name, mode_of(path)) for path in run.iterdir() if path.is_dir()] == [("daemons", 0o700)]
        assert {mode_of(path) for path in (run / "daemons").iterdir()} == {0o600}
        assert mode_of(gateway.database) == 0o600


def test_group_that_does_not_exist_is_refused_in_words(shared: Path) -> None:
    with pytest.raises(Fatal, match="PERDURE_GROUP: no group is called 'nosuchgroup'") as caught:
        runtime.group_named("nosuchgroup")
    assert caught.value.status == EXIT_CONFIGURATION


def test_socket_that_can_not_be_shared_is_refused_in_words(shared: Path) -> None:
    with pytest.raises(Fatal, match="PERDURE_GROUP must be a group of the worker's user"):
        runtime.share(shared / "gone", os.getgid(), 0o660)
