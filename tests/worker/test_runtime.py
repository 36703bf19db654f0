"""What the operating system is asked for: the lock, directories, exits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker import runtime
from worker.runtime import (
    EXIT_CONFIGURATION,
    EXIT_UNAVAILABLE,
    Fatal,
    leave,
    lock_file,
    private_directory,
)

ROOT = Path(__file__).resolve().parents[2]


def test_lock_second_holder_is_refused_and_told_the_first(tmp_path: Path) -> None:
    path = tmp_path / "perdure.lock"
    held = lock_file(path, "stop it")
    with pytest.raises(Fatal, match=f"pid {os.getpid()}.*stop it") as caught:
        lock_file(path, "stop it")
    assert caught.value.status == EXIT_UNAVAILABLE
    os.close(held)
    os.close(lock_file(path, "stop it"))


def test_lock_goes_with_the_process_that_held_it(tmp_path: Path) -> None:
    path = tmp_path / "perdure.lock"
    script = (
        "import os, signal; from pathlib import Path; from worker.runtime import lock_file; "
        f"lock_file(Path({str(path)!r}), 'stop it'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-P", "-c", script], env={"PYTHONPATH": str(ROOT)}, check=False, timeout=30)
    assert path.read_text().strip().isdigit(), "the dead holder's pid is still written there"
    os.close(lock_file(path, "stop it"))
    assert path.read_text() == f"{os.getpid()}\n"


def test_lock_that_is_a_directory_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "perdure.lock"
    path.mkdir()
    with pytest.raises(Fatal, match=r"perdure\.lock: Is a directory") as caught:
        lock_file(path, "stop it")
    assert caught.value.status == EXIT_CONFIGURATION


def test_private_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    made = private_directory(tmp_path / "a" / "b")
    assert made.stat().st_mode & 0o777 == 0o700
    assert private_directory(made) == made


def test_private_directory_under_a_file_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fatal, match="name a directory that can be written") as caught:
        private_directory(tmp_path / "file" / "state")
    assert caught.value.status == EXIT_CONFIGURATION


def test_leave_says_one_line_and_ends_with_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        leave("perdure worker", Fatal(EXIT_CONFIGURATION, "move it away"))
    assert caught.value.code == EXIT_CONFIGURATION
    assert capsys.readouterr().err == "perdure worker: move it away\n"


def test_exit_statuses_are_the_promised_ones() -> None:
    found = {name: getattr(runtime, name) for name in dir(runtime) if name.startswith("EXIT_")}
    assert found == {
        "EXIT_OK": 0,
        "EXIT_USAGE": 2,
        "EXIT_INTERNAL": 70,
        "EXIT_UNAVAILABLE": 75,
        "EXIT_CONFIGURATION": 78,
    }


def test_process_with_an_argument_ends_as_wrong_usage(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "worker", "--help-me"],
        cwd=ROOT,
        env={"PERDURE_STATE_DIR": str(tmp_path)},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == runtime.EXIT_USAGE
    assert len(done.stderr.splitlines()) == 1
