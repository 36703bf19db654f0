"""Where perdure listens, and who else of this machine learns its token.

One rule: what is refused is refused by the real programs, before they listen.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.processes import HOST, Gateway, eventually, free_ports
from tests.provider import ScriptedProvider
from worker.runtime import EXIT_CONFIGURATION
from worker.settings import BadSettings, Settings, environment, load, loaded

PERDURE: Final = str(Path(sys.executable).with_name("perdure"))
DEADLINE_SECONDS: Final = 60.0
ELSEWHERE: Final = (
    "0.0.0.0",
    "[::]",
    "::",
    "192.0.2.7",
    "example.com",
    "localhost.example.com",
    "127.0.0.1.example.com",
    "127.1",
    "0",
    "[::ffff:0.0.0.0]",
    "[fe80::1]",
)


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-") as made:
        yield Path(made)


def ended(command: list[str], directory: Path, *inherited: int, **settings: str) -> tuple[int, str]:
    """Exit status and words of a program that is to refuse."""
    environ = {"PATH": os.environ["PATH"], "PERDURE_STATE_DIR": str(directory), **settings}
    done = subprocess.run(
        command,
        env=environ,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
        pass_fds=inherited,
    )
    return done.returncode, done.stdout + done.stderr


# -- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ELSEWHERE)
def test_address_that_others_reach_needs_a_token(host: str) -> None:
    with pytest.raises(BadSettings, match="reachable from other machines; set PERDURE_TOKEN"):
        load({}, {"PERDURE_LISTEN": f"{host}:7373"})
    assert load({}, {"PERDURE_LISTEN": f"{host}:7373", "PERDURE_TOKEN": "t"}).token == "t"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"])
def test_address_of_this_machine_alone_needs_none(host: str) -> None:
    assert not load({}, {"PERDURE_LISTEN": f"{host}:7373"}).token


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "example.com"])
@pytest.mark.parametrize("command", [[sys.executable, "-P", "-m", "daemon"], [PERDURE, "up"]])
def test_program_that_others_would_reach_without_a_token_does_not_start(
    directory: Path, command: list[str], host: str
) -> None:
    (port,) = free_ports(1)
    status, said = ended(command, directory, PERDURE_LISTEN=f"{host}:{port}")
    assert status == EXIT_CONFIGURATION and "set PERDURE_TOKEN" in said
    assert len(said.splitlines()) == 1
    assert not list(directory.iterdir()), "nothing was begun"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_socket_that_a_supervisor_opened_counts_not_the_address_in_the_settings(directory: Path, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as passed:
        try:
            passed.bind((host, 0))
        except OSError as error:
            pytest.skip(f"no such address here: {error}")
        command = [sys.executable, "-P", "-m", "daemon"]
        status, said = ended(command, directory, passed.fileno(), PERDURE_LISTEN_FD=str(passed.fileno()))
    assert status == EXIT_CONFIGURATION and "set PERDURE_TOKEN" in said and len(said.splitlines()) == 1


def test_daemon_on_loopback_is_not_reached_under_another_address_of_the_machine() -> None:
    with ScriptedProvider() as provider, Gateway(provider) as gateway:
        gateway.start_daemon()
        with contextlib.closing(socket.socket()) as elsewhere:
            elsewhere.settimeout(DEADLINE_SECONDS)
            # Also loopback, but not the address that was asked for.
            assert elsewhere.connect_ex(("127.0.0.2", gateway.port)) != 0


# -- names -----------------------------------------------------------------------------------------------------------


def test_hosts_are_names_and_addresses_in_lower_case() -> None:
    given = "Gateway.Example, host.docker.internal,10.0.0.7, [fd00::7]"
    environ = {"PERDURE_HOSTS": given}
    found = load({}, environ)
    assert found.hosts == ("gateway.example", "host.docker.internal", "10.0.0.7", "fd00::7")
    assert load({}, {**environ, **environment(loaded({}, environ))}) == found, "children of a supervisor see the same"


@pytest.mark.parametrize("name", ["http://a.example", "a.example:80", "*", "a b", "a/b", "x" * 300, "", "[::1]:80"])
def test_host_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(BadSettings, match=r"PERDURE_HOSTS: .* is not the name of a host"):
        load({}, {"PERDURE_HOSTS": f"good.example,{name}"})


@pytest.mark.parametrize("header", ["authorization", "X-Api-Key", "api-key", "x-goog-api-key", "cookie"])
def test_header_that_carries_a_secret_names_no_session(header: str) -> None:
    with pytest.raises(BadSettings, match="carries a secret"):
        load({}, {"PERDURE_SESSION_HEADERS": header})


# -- the token at rest -----------------------------------------------------------------------------------------------


def test_token_has_no_flag_and_is_in_no_refusal() -> None:
    assert "token" in Settings.__struct_fields__
    done = subprocess.run(
        [PERDURE, "up", "--token", "x"], capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )
    assert done.returncode == 2
    for environ in ({"PERDURE_TOKEN": "s3cr3t s3cr3t"}, {"PERDURE_TOKEN": "s3cr3t", "PERDURE_DAEMONS": "many"}):
        with pytest.raises(BadSettings) as caught:
            load({}, environ)
        assert "s3cr3t" not in str(caught.value)


def test_token_is_on_no_command_line_and_in_no_log_of_up(directory: Path) -> None:
    (port,) = free_ports(1)
    token = "MARKED-TOKEN-3b1d"
    environ = {
        "PATH": os.environ["PATH"],
        "PERDURE_STATE_DIR": str(directory),
        "PERDURE_LISTEN": f"{HOST}:{port}",
        "PERDURE_TOKEN": token,
        "PERDURE_LOG_LEVEL": "debug",
    }
    with (directory / "said").open("wb") as said:
        process = subprocess.Popen([PERDURE, "up"], env=environ, cwd=directory, stdout=said, stderr=said)
    try:
        eventually(lambda: is_alive(port), DEADLINE_SECONDS, "the daemon answers")
        lines = eventually(lambda: command_lines(process.pid), DEADLINE_SECONDS, "worker, health and daemon run")
        assert not [line for line in lines if token.encode() in line]
    finally:
        process.terminate()
        process.wait(DEADLINE_SECONDS)
    texts = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert len(texts) > 5 and not [path for path, text in texts.items() if token.encode() in text]


def command_lines(pid: int) -> list[bytes]:
    """Of a supervisor and its three programs; empty until all of them have one."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    lines = [Path(f"/proc/{each}/cmdline").read_bytes() for each in (str(pid), *children)]
    return lines if len(lines) == 4 and all(lines) else []


def is_alive(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=DEADLINE_SECONDS)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    return False
