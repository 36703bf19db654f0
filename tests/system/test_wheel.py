"""The package as it is installed elsewhere: built, put into an empty environment, and run far from the checkout.

One rule: nothing of the checkout, of this environment or of this user's home can be reached from what is tested here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.clients import AnthropicTalk
from tests.processes import HOST, eventually, free_ports
from tests.provider import ScriptedProvider

pytestmark = pytest.mark.system

ROOT: Final = Path(__file__).resolve().parents[2]
UV: Final = str(Path(sys.executable).with_name("uv"))
INSTALL_SECONDS: Final = 120
UNREACHABLE: Final = ("Failed to fetch", "error sending request", "dns error", "Could not connect")
"""What uv says where there is no index of packages to ask."""


class Installation:
    """An environment with perdure in it, and a home with nothing in it."""

    def __init__(self, directory: Path) -> None:
        self.environment = directory / "env"
        self.home = directory / "home"
        self.home.mkdir()
        self.environ = {"PATH": os.defpath, "HOME": str(self.home)}

    def command(self, name: str) -> str:
        return str(self.environment / "bin" / name)

    def perdure(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.command("perdure"), *words],
            env=self.environ | environ,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def packages(self) -> Path:
        (found,) = self.environment.glob("lib/python*/site-packages")
        return found


@pytest.fixture(scope="module")
def installed() -> Iterator[Installation]:
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-"))
    try:
        made = Installation(directory)
        must([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)])
        (wheel,) = directory.glob("*.whl")
        must([sys.executable, "-m", "venv", "--without-pip", str(made.environment)])
        # The system's certificates, as pip takes them: an index of one's own is often known to them alone.
        install = [UV, "pip", "install", "-q", "--system-certs", "--python", made.command("python")]
        must([*install, "--require-hashes", "-r", "requirements.lock"])
        must([*install, "--no-deps", str(wheel)])
        yield made
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def must(command: list[str]) -> None:
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    if run.returncode and any(sign in run.stderr for sign in UNREACHABLE):
        pytest.skip(f"no index of packages can be reached from here: {run.stderr.splitlines()[-1]}")
    assert run.returncode == 0, run.stdout + run.stderr


def test_wheel_runs_from_any_directory_with_an_empty_home(installed: Installation) -> None:
    port = free_ports(1)[0]
    with ScriptedProvider() as provider:
        installed.environ |= {"PERDURE_LISTEN": f"{HOST}:{port}", "PERDURE_ANTHROPIC_URL": provider.url}
        up = subprocess.Popen(
            [installed.command("perdure"), "up"], env=installed.environ, cwd="/", stdout=subprocess.DEVNULL
        )
        try:
            eventually(lambda: '"ready"' in installed.perdure("status", "--json").stdout, 60, "it is ready")
            with AnthropicTalk(f"http://{HOST}:{port}", "claude-session") as talk:
                session = talk.say("hello").session
            assert session in installed.perdure("sessions", "--json").stdout
            running = programs(up.pid)
            assert {words[3] for words in running.values()} == {"daemon", "worker", "worker.health"}
            assert {words[0] for words in running.values()} == {installed.command("python")}
            state = installed.home / ".local/state/perdure"
            assert {each.name for each in installed.home.rglob("*.log")} == {
                *("daemon-0.log", "health.log", "supervisord.log", "worker.log")
            }

            status = installed.perdure("ctl", "status")
            assert (status.returncode, status.stdout.count("RUNNING")) == (0, 3)
            # The longer way does not depend on us; it does on the directory, where it looks for a configuration.
            long = [installed.command("supervisorctl"), "-s", f"unix://{state}/run/sv.sock", "status", "worker"]
            said = subprocess.run(long, cwd=installed.home, capture_output=True, text=True, check=False)
            assert "RUNNING" in said.stdout, said
            assert installed.perdure("ctl", "restart", "worker").returncode == 0
            assert "ready at" in installed.perdure("ctl", "tail", "worker").stdout
            units = installed.perdure("install-units", "--dry-run")
            assert installed.command("python") in units.stdout, units.stderr

            assert installed.perdure("down").returncode == 0
            assert up.wait(30) == 0
            assert not programs(up.pid)
        finally:
            up.kill()
            up.wait(10)


def programs(parent: int) -> dict[int, list[str]]:
    """The command lines of a process's children."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    found[int(entry.name)] = (entry / "cmdline").read_text().split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue  # It ended while we looked.
    return found


def test_strangers_package_in_front_of_ours_is_refused_with_the_remedy(installed: Installation, tmp_path: Path) -> None:
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "__init__.py").write_text("raise SystemExit('imported')\n")
    run = installed.perdure("status", PYTHONPATH=str(tmp_path))
    assert run.returncode == 78
    assert run.stderr.count("\n") == 1
    assert f"{tmp_path}/worker" in run.stderr and "unset PYTHONPATH" in run.stderr


def test_another_distribution_over_ours_is_refused_by_its_name(installed: Installation) -> None:
    ours, theirs = installed.packages / "daemon/__init__.py", installed.packages / "python_daemon-3.dist-info"
    said = ours.read_text()
    try:
        theirs.mkdir()
        (theirs / "METADATA").write_text("Metadata-Version: 2.1\nName: python-daemon\nVersion: 3\n")
        (theirs / "top_level.txt").write_text("daemon\n")
        ours.write_text("raise SystemExit('imported')\n")
        run = installed.perdure("status")
        assert run.returncode == 78
        assert run.stderr.count("\n") == 1
        assert "python-daemon" in run.stderr and "environment of its own" in run.stderr
        # What the other one's removal leaves.
        ours.unlink()
        run = installed.perdure("status")
        assert run.returncode == 78 and "install perdure anew" in run.stderr
    finally:
        shutil.rmtree(theirs)
        ours.write_text(said)
    assert installed.perdure("--version").returncode == 0
