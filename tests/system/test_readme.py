"""The README followed literally, as a stranger would: the text of its shell blocks, in a clone, with an empty home.

One rule: a command here stands in the README; what is not there is only what comes before and after: a clone, a file
carried to another directory, and a look at what runs.

The environment holds PATH, HOME, and how this machine reaches an index of packages.  Addresses are the default ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.processes import HOST, eventually
from worker.settings import Settings

pytestmark = [pytest.mark.system, pytest.mark.slow]

ROOT: Final = Path(__file__).resolve().parents[2]
README: Final = (ROOT / "README.md").read_text("utf-8")
BLOCK: Final = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLLOW_SECONDS: Final = 240
"""Two environments with all they need, from an index of packages, on a slow line."""
UNREACHABLE: Final = ("No matching distribution", "Could not find a version", "Failed to establish a new connection")
"""What pip says where there is no index of packages to ask."""


def blocks(heading: str) -> list[str]:
    """The shell blocks of a section."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = BLOCK.findall(section)
    assert found, heading
    return found


class Machine:
    """A directory with a clone, a place to work in, and an empty home."""

    def __init__(self, directory: Path) -> None:
        self.clone, self.work, self.home = (directory / name for name in ("clone", "work", "home"))
        for made in (self.work, self.home):
            made.mkdir()
        python = Path(os.path.realpath(sys.executable)).parent
        index = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
        cache = {"PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache/pip"))}
        self.environ = {"PATH": f"{python}:{os.defpath}", "HOME": str(self.home), **cache, **index}

    @property
    def state(self) -> Path:
        return self.home / ".local/state/perdure"

    def follow(self, script: str, directory: Path) -> str:
        """Run a block's text; every command of it must succeed."""
        run = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", script],
            cwd=directory,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=FOLLOW_SECONDS,
            check=False,
        )
        skip_if_unreachable(run.stdout)
        assert run.returncode == 0, run.stdout
        return run.stdout


def skip_if_unreachable(said: str) -> None:
    if any(sign in said for sign in UNREACHABLE):
        pytest.skip(f"no index of packages can be reached from here: {said.splitlines()[-1]}")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    if is_taken():
        pytest.skip(f"{Settings().listen} is taken: the README's blocks use it")
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no clone, of which another could be made")
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-"))
    try:
        made = Machine(directory)
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(made.clone)], check=True)
        yield made
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_two_commands(machine: Machine) -> None:
    first, _agents, looks = blocks("Two commands")
    commands = [line.partition("#")[0].strip() for line in first.splitlines()]
    assert commands == ["make up", "make test"]
    # The other one is what runs this.
    machine.follow(commands[1].replace("make", "make -n"), machine.clone)

    log = machine.work / "up.log"
    with log.open("wb") as output:
        up = subprocess.Popen(
            ["bash", "-c", commands[0]],
            cwd=machine.clone,
            env=machine.environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        eventually(lambda: up.poll() is not None or readiness() == "ready", FOLLOW_SECONDS, log.read_text)
        skip_if_unreachable(log.read_text())
        assert up.poll() is None, log.read_text()
        for line in looks.splitlines():
            command = line.partition("#")[0].strip()
            if command.split()[1] not in ("show", "doctor"):  # They need a session of that name, and providers.
                machine.follow(command, machine.clone)
        # What Ctrl-C does: every process at the terminal gets it.
        os.killpg(up.pid, signal.SIGINT)
        assert up.wait(60) in (0, 130, -signal.SIGINT), log.read_text()  # make itself may die of it
    finally:
        if up.poll() is None:
            os.killpg(up.pid, signal.SIGKILL)
            up.wait(10)
    eventually(lambda: not is_taken(), what="nothing listens")
    assert (machine.state / "perdure.db").exists()


def test_keep_it_running(machine: Machine) -> None:
    machine.follow("make wheel", machine.clone)
    (wheel,) = (machine.clone / "dist").glob("*.whl")
    shutil.copy(wheel, machine.work)
    shutil.rmtree(machine.home)
    machine.home.mkdir()
    try:
        said = machine.follow("".join(blocks("Keep it running")), machine.work)
    finally:
        command = machine.work / "perdure/bin/perdure"
        if command.exists():
            subprocess.run([command, "down"], env=machine.environ, check=False, stdout=subprocess.DEVNULL)
    assert not is_taken(), "`perdure down` is the last of them"
    assert said.count("daemon:daemon-1") >= 2 and said.count("RUNNING") >= 4
    (backup,) = (machine.work / "backups").glob("perdure-*.db")
    assert backup.stat().st_size > 0
    assert list(machine.state.glob("perdure.db.before-restore-*")), "the restore kept what was there"


def is_taken() -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, Settings().listen_port))
        except OSError:
            return True
    return False


def readiness() -> str:
    """What the gateway at the default address says of itself."""
    with socket.socket() as client:
        client.settimeout(5)
        try:
            client.connect((HOST, Settings().listen_port))
            client.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(65_536), b""))
        except OSError:
            return ""
    said: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2] or b"{}")
    return str(said.get("status", ""))
