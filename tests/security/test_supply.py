"""What perdure is made of, and that it calls nobody: locked dependencies, and no network but what was asked for.

One rule: the network is watched at the system's own border where that is possible (strace), and in Python everywhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.version import Version

from tests.processes import DEADLINE_SECONDS, HOST, Gateway, eventually
from tests.provider import ScriptedProvider
from tests.system.turns import take_turn

ROOT: Final = Path(__file__).resolve().parents[2]
LOCKS: Final = ("requirements.lock", "requirements-dev.lock")
BUILD_LOCK: Final = "requirements-build.lock"
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")


class Locked(NamedTuple):
    version: str
    marker: Marker | None
    hashes: tuple[str, ...]


def locked(name: str) -> dict[str, list[Locked]]:
    """A lock file by distribution; one may be there in several versions for different systems."""
    found: dict[str, list[Locked]] = {}
    text = (ROOT / name).read_text("utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        wanted, *hashes = line.split(" --hash=")
        requirement = Requirement(wanted.strip())
        (specifier,) = requirement.specifier
        assert specifier.operator == "==" and not requirement.url, f"{line}: one version, from the index"
        entry = Locked(specifier.version, requirement.marker, tuple(each.strip() for each in hashes))
        found.setdefault(canonical(requirement.name), []).append(entry)
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(*groups: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    lines = [*project["project"]["dependencies"], *(each for g in groups for each in project["dependency-groups"][g])]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("name", [*LOCKS, BUILD_LOCK])
def test_every_locked_distribution_has_one_version_and_its_hashes(name: str) -> None:
    entries = locked(name)
    assert len(entries) > (5 if name == BUILD_LOCK else 20)
    for distribution, versions in entries.items():
        for entry in versions:
            assert entry.hashes, distribution
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in entry.hashes), distribution


@pytest.mark.parametrize(("name", "groups"), [(LOCKS[0], []), (LOCKS[1], ["dev"])])
def test_lock_holds_what_the_project_asks_for(name: str, groups: list[str]) -> None:
    entries = locked(name)
    for requirement in wanted(*groups):
        found = entries[canonical(requirement.name)]
        assert all(Version(entry.version) in requirement.specifier for entry in found), requirement
    # What is only tested with is not installed to run.
    runtime = {canonical(requirement.name) for requirement in wanted()}
    assert groups or not ({canonical(each.name) for each in wanted("dev")} - runtime) & entries.keys()


def test_what_builds_the_package_is_locked_too() -> None:
    """A build back end runs with all rights of whoever installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    entries = locked(BUILD_LOCK)
    for line in [*project["build-system"]["requires"], *project["dependency-groups"]["build"]]:
        requirement = Requirement(line)
        (found,) = entries[canonical(requirement.name)]
        assert Version(found.version) in requirement.specifier


@pytest.mark.parametrize("name", [LOCKS[0], BUILD_LOCK])
def test_locks_agree(name: str) -> None:
    dev = locked(LOCKS[1])
    for distribution, entries in locked(name).items():
        theirs = dev.get(distribution, [] if name == LOCKS[0] else entries)
        assert [(e.version, e.hashes) for e in entries] == [(e.version, e.hashes) for e in theirs], distribution


def test_what_is_installed_is_what_is_locked() -> None:
    differing = {}
    for name, entries in locked(LOCKS[1]).items():
        here = [entry.version for entry in entries if entry.marker is None or entry.marker.evaluate()]
        assert len(here) <= 1, f"{name}: {here}"
        if here and version(name) != here[0]:
            differing[name] = (version(name), here[0])
    assert not differing


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_is_complete_for_every_python_it_is_meant_for(python: str) -> None:
    entries = locked(LOCKS[0])
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    for requirement in wanted():
        found = entries[canonical(requirement.name)]
        assert [each for each in found if each.marker is None or each.marker.evaluate(environment)], requirement


def test_installation_checks_the_hashes() -> None:
    """Where a line of make installs anything but this project itself."""
    lines = [line for line in (ROOT / "Makefile").read_text("utf-8").splitlines() if "pip install" in line]
    ours = "--no-build-isolation --no-deps -e ."  # With isolation, pip would fetch a back end that nobody has locked.
    assert lines and all("--require-hashes -r" in line or ours in line for line in lines)


# -- the network -----------------------------------------------------------------------------------------------------

WATCHED: Final = """
import json, os, runpy, sys
WATCHED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request",
           "http.client.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "webbrowser.open")
calls = os.open(os.environ.pop("WATCH_CALLS"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def watch(event, arguments):
    if event in WATCHED:
        os.write(calls, (json.dumps([event, repr(arguments)[:200]]) + "\\n").encode())
sys.addaudithook(watch)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def calls_in(path: Path) -> list[list[str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_programs_call_nobody_by_themselves(tmp_path: Path) -> None:
    programs = {
        name: [
            "/usr/bin/env",
            f"WATCH_CALLS={tmp_path / name}",
            *(strace(tmp_path / f"{name}.strace") if can_trace(tmp_path) else []),
            *(sys.executable, "-P", "-c", WATCHED, name),
        ]
        for name in ("worker", "daemon")
    }
    with ScriptedProvider() as provider, Gateway(provider, programs=programs, tick_seconds=0.1) as gateway:
        gateway.start()
        assert gateway.get("/metrics") is not None
        before = {name: calls_in(tmp_path / name) for name in programs}
        # Prices are looked up, and what was dialled is the provider that the settings name.
        with gateway.client() as client:
            assert take_turn(client, "messages", "hello").complete
        gateway.kill_all()
        assert gateway.session(gateway.rows()[0].session_id)["cost_nanousd"] is not None
        provider_port = int(provider.url.rpartition(":")[2])
    assert before == {"worker": [], "daemon": []}
    assert calls_in(tmp_path / "worker") == []
    if can_trace(tmp_path):
        assert dialled(tmp_path / "worker.strace") == set()
        called = eventually(lambda: dialled(tmp_path / "daemon.strace"), what="the tracer has written all of it")
        assert called == {(HOST, provider_port)}


def test_audit_sees_a_program_that_does_call(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    (tmp_path / "caller.py").write_text(
        "import socket, urllib.request\n"
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))\n"
        "try: urllib.request.urlopen('http://127.0.0.1:9/prices.json', timeout=5)\n"
        "except OSError: pass\n"
    )
    trace = strace(tmp_path / "strace") if can_trace(tmp_path) else []
    command = [*trace, sys.executable, "-c", WATCHED, "caller"]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "WATCH_CALLS": str(tmp_path / "calls")}
    subprocess.run(command, env=environ, cwd=tmp_path, timeout=DEADLINE_SECONDS, check=True)
    assert {event for event, _ in calls_in(tmp_path / "calls")} >= {"socket.connect", "urllib.Request"}
    assert not trace or eventually(lambda: dialled(tmp_path / "strace")) == {("127.0.0.1", 9)}


def strace(path: Path) -> list[str]:
    """-D: the program keeps the pid that was started, and is the one that is killed."""
    return ["strace", "-D", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(path)]


def can_trace(directory: Path) -> bool:
    """Not everywhere is there an strace, and not everywhere may it be used."""
    if not shutil.which("strace"):
        return False
    command = [*strace(directory / "probe"), "true"]
    return subprocess.run(command, capture_output=True, timeout=DEADLINE_SECONDS, check=False).returncode == 0


def dialled(path: Path) -> set[tuple[str, int]]:
    """Whom a traced program called by an address of the internet's kind."""
    return set(addresses(path.read_text("utf-8", "replace")))


def addresses(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        port = re.search(r"sin6?_port=htons\((\d+)\)", line)
        host = re.search(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"', line)
        if port and host:
            yield host[1] or host[2], int(port[1])
