"""perdure under a real systemd, booted in a container, behind all the walls of its units.

One rule: what is done is what an operator does — `perdure install-units`, `systemctl`, `journalctl`, `kill` — and what
is looked at is what a client or an operator sees.

Theory.  One machine is booted for all tests of this file, since that takes as long as most of them; each test leaves
everything up and ready.  The provider runs in this process: machine and container share the network.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from tests.clients import AnthropicTalk, RawClient
from tests.many.pooled import Load
from tests.processes import HOST, eventually, free_ports
from tests.provider import ScriptedProvider
from tests.system.machine import MUST_RUN, PREFIX, ROOT, CanNot, Machine
from tests.system.turns import send_turn, take_turn

pytestmark = pytest.mark.system

PERDURE: Final = f"{PREFIX}/.venv/bin/perdure"
CONFIG: Final = "/etc/perdure/perdure.toml"
DATABASE: Final = "/var/lib/perdure/perdure.db"
WORKER, DAEMON, SECOND = "perdure-worker.service", "perdure-daemon@1.service", "perdure-daemon@2.service"
TEMPLATE: Final = "perdure-daemon@.service"
LOGS: Final = ("perdure-worker", "perdure-daemon-1", "perdure-daemon-2")
CLIENTS: Final = 8
HELD_EACH: Final = 5
HELD_MAX: Final = 40
"""Connections of which the kernel gives not one to the second of two sockets: once in a million million times."""
WATCH_SECONDS: Final = 5
"""Of the worker, in the test of its watchdog: as short as its manual allows."""
PROBE: Final = """
import socket, sys
def opened(path):
    try:
        open(path, "rb").close()
    except OSError as error:
        return type(error).__name__
    return "opened"
def reached(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(path)
        except OSError as error:
            return type(error).__name__
        return "reached"
print(opened("/var/lib/perdure/perdure.db"), reached("/run/perdure/worker.sock"))
"""
"""What a user can do with the database and with the worker's socket."""


class Services:
    """perdure's units in a machine, and how to look at them."""

    def __init__(self, machine: Machine, port: int) -> None:
        self.machine = machine
        self.port = port
        self.url = f"http://{HOST}:{port}"

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.machine.run("systemctl", *words, check=check)

    def show(self, unit: str, name: str) -> str:
        return self.systemctl("show", "--value", "-p", name, unit).strip()

    def pid(self, unit: str) -> int:
        """Its process, as the container numbers it; 0 for none."""
        return int(self.show(unit, "MainPID"))

    def signal(self, unit: str, name: str) -> int:
        """Send its process a signal; which process that was."""
        pid = self.pid(unit)
        self.machine.run("kill", f"-{name}", str(pid))
        return pid

    def wait_for(self, unit: str, state: str, but: int = 0, deadline_seconds: float = 30.0) -> None:
        """Return once a unit is in such a state, and its process is another one than that."""

        def found() -> bool:
            return self.show(unit, "SubState") == state and (not but or self.pid(unit) != but)

        eventually(found, deadline_seconds, lambda: f"{unit} {state}\n{self.systemctl('status', unit, check=False)}")

    def wait_status(self, unit: str, beginning: str) -> None:
        """Return once a unit says something of itself that begins so: about once a second it says what is new."""
        eventually(
            lambda: self.show(unit, "StatusText").startswith(beginning),
            30.0,
            lambda: self.systemctl("status", unit, check=False),
        )

    def wait_ready(self, *daemons: str) -> None:
        for unit in daemons or (DAEMON,):
            self.wait_status(unit, "ready:")

    def perdure(self, *words: str, check: bool = True) -> str:
        return self.machine.run(PERDURE, *words, check=check, PERDURE_CONFIG=CONFIG)

    def sessions(self) -> dict[str, dict[str, Any]]:
        return {shown["session_id"]: shown for shown in json.loads(self.perdure("sessions", "--json"))}

    def wait_stored(self, session: str, turns: int) -> None:
        """Return once a session has so many turns in the database."""
        eventually(
            lambda: self.sessions().get(session, {}).get("turns") == turns, 30.0, lambda: f"{turns}: {self.sessions()}"
        )

    def stop(self) -> None:
        """All of it, in order; returns when it is down."""
        self.systemctl("stop", "perdure.target", "perdure-backup.timer")
        self.systemctl("stop", "perdure-*.service")

    def drop_in(self, unit: str, *lines: str) -> Callable[[], None]:
        """A drop-in, in force from the unit's next start on; gives what takes it away."""
        path = f"/etc/systemd/system/{unit}.d/test.conf"
        self.machine.write(path, "\n".join(lines) + "\n")
        self.systemctl("daemon-reload")

        def remove() -> None:
            self.machine.run("rm", path)
            self.systemctl("daemon-reload")

        return remove

    def cursor(self) -> str:
        return self.machine.run("journalctl", "-n", "0", "--show-cursor").rpartition("cursor: ")[2].strip()

    def journal(self, cursor: str, *names: str) -> list[dict[str, Any]]:
        """What was logged since then under these names, in order."""
        self.machine.run("journalctl", "--sync")
        # Filtered here: journalctl itself, given a cursor and a filter, leaves out the first that passes it.
        lines = self.machine.run("journalctl", "-o", "json", "--after-cursor", cursor).splitlines()
        entries = [json.loads(line) for line in lines if line.startswith("{")]
        return [entry for entry in entries if entry.get("SYSLOG_IDENTIFIER") in names]


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


@pytest.fixture(scope="module")
def services(provider: ScriptedProvider) -> Iterator[Services]:
    """Booted, installed as the README says, started."""
    try:
        machine = Machine()
        machine.__enter__()
    except CanNot as reason:
        if MUST_RUN:
            raise
        pytest.skip(f"no systemd can be booted here: {reason}")
    try:
        (port,) = free_ports(1)
        machine.write(
            "/etc/perdure/perdure.env", f"PERDURE_ANTHROPIC_URL={provider.url}\nPERDURE_OPENAI_URL={provider.url}\n"
        )
        said = machine.run(PERDURE, "install-units", "--listen", f"{HOST}:{port}")
        for command in re.findall(r"(?m)^  (system\S+ .*)$", said):
            machine.run(*command.replace("'", "").split(), check="status" not in command)
        running = Services(machine, port)
        running.wait_ready()
        yield running
    except BaseException as error:
        error.add_note(machine.run("journalctl", "-n", "60", check=False))
        raise
    finally:
        machine.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def explained(services: Services) -> Iterator[None]:
    """Every test begins with what runs and is ready, and leaves it so."""
    cursor = services.cursor()
    try:
        yield
        services.wait_ready()
    finally:
        print(services.machine.run("journalctl", "--after-cursor", cursor, check=False))


def ask(services: Services, session: str = "asked", text: str = "hello") -> str:
    """One turn; the id of its session."""
    with RawClient(HOST, services.port, deadline_seconds=20.0) as client:
        answer = take_turn(client, "messages", text, session=session)
    assert answer.status == 200 and answer.complete, answer
    return answer.header("x-perdure-session")


def test_target_starts_everything_and_a_turn_goes_through(services: Services) -> None:
    for unit in ("perdure.target", WORKER, DAEMON, "perdure-daemon@1.socket", "perdure-backup.timer"):
        assert services.show(unit, "ActiveState") == "active", unit
        assert services.systemctl("is-enabled", "perdure.target").strip() == "enabled"
    with AnthropicTalk(services.url, "first") as talk:
        said = [talk.say("one"), talk.say("two", stream=True)]
    shown = services.sessions()[said[0].session]
    assert said[1].session == said[0].session and (shown["turns"], shown["interrupted"]) == (2, 0)
    services.wait_status(WORKER, "ready: 1 daemon, ")
    assert json.loads(services.perdure("status", "--json"))["status"] == "ready"
    assert {services.show(unit, "NRestarts") for unit in (WORKER, DAEMON)} == {"0"}


def test_killed_is_started_again_and_the_session_goes_on(services: Services) -> None:
    with AnthropicTalk(services.url, "killed", max_retries=4) as talk:
        session = talk.say("turn 1").session
        killed = services.signal(WORKER, "KILL")
        assert talk.say("turn 2").session == session, "without a worker"
        services.wait_for(WORKER, "running", killed)
        services.wait_stored(session, 2)
        killed = services.signal(DAEMON, "KILL")
        # Whoever connects meanwhile waits, and is not refused.
        assert talk.say("turn 3", stream=True).session == session
        services.wait_for(DAEMON, "running", killed)
        services.wait_ready()
        killed = services.signal(WORKER, "KILL")
        services.signal(DAEMON, "KILL")
        services.wait_for(WORKER, "running", killed)
        services.wait_ready()
        assert talk.say("turn 4").session == session
    shown = services.sessions()[session]
    assert (shown["turns"], shown["interrupted"]) == (4, 0)


def test_hung_worker_is_ended_by_the_watchdog_and_started_again(services: Services) -> None:
    remove = services.drop_in(WORKER, "[Service]", f"WatchdogSec={WATCH_SECONDS}")
    services.systemctl("restart", WORKER)
    services.wait_ready()
    cursor = services.cursor()
    stopped = services.signal(WORKER, "STOP")
    session = ask(services, "hung")
    services.wait_for(WORKER, "running", stopped)
    remove()
    services.wait_stored(session, 1)
    ours = services.machine.run("journalctl", "--after-cursor", cursor, f"UNIT={WORKER}")
    assert f"Watchdog timeout (limit {WATCH_SECONDS}s)" in ours


def test_restart_of_all_daemons_under_load_drops_no_request(services: Services, provider: ScriptedProvider) -> None:
    services.systemctl("enable", "--now", "perdure-daemon@2")
    services.wait_ready(DAEMON, SECOND)
    services.wait_status(WORKER, "ready: 2 daemons")
    before = {unit: services.pid(unit) for unit in (DAEMON, SECOND)}
    already = sum(shown["turns"] for shown in services.sessions().values())
    with Load(7, CLIENTS, lambda _: services.port) as load:
        load.wait_for_answers(10 * CLIENTS)
        services.systemctl("restart", "perdure-daemon@*.service")
        load.wait_for_answers(4 * CLIENTS)
    assert load.failures == []
    assert all(services.pid(unit) not in (0, pid) for unit, pid in before.items())
    services.wait_ready(DAEMON, SECOND)
    services.signal(WORKER, "STOP")
    told = {each["pid"]: each["state"] for each in json.loads(services.perdure("status", "--json"))["daemons"]}
    services.signal(WORKER, "CONT")
    assert told == {services.pid(unit): "running" for unit in (DAEMON, SECOND)}, "both are called, whoever hangs"
    shown = services.sessions().values()
    assert sum(each["interrupted"] for each in shown) == 0
    assert sum(each["turns"] for each in shown) - already == load.answered
    assert sum(each["output_tokens"] for each in shown) == provider.usage_total().output_tokens


def test_daemon_taken_out_socket_first_leaves_everybody_to_the_others(
    services: Services, provider: ScriptedProvider
) -> None:
    """The loop of the README: nobody waits for the one that drains, and it comes back with its socket."""
    services.systemctl("start", SECOND)
    services.wait_ready(DAEMON, SECOND)
    held: list[RawClient] = []
    while not requests_of(services, SECOND):
        # The kernel deals connections out: the second one gets some of them, and keeps them.
        assert len(held) < HELD_MAX
        for _ in range(HELD_EACH):
            held.append(RawClient(HOST, services.port, deadline_seconds=20.0))
            send_turn(held[-1], "chat", "hold:taken-out words:40", session=f"held-{len(held)}", stream=True)
        eventually(
            lambda: requests_of(services, DAEMON) + requests_of(services, SECOND) == len(held), what=f"{len(held)} held"
        )
    services.systemctl("stop", "perdure-daemon@2.socket")
    services.systemctl("--no-block", "restart", SECOND)
    services.wait_for(SECOND, "stop-sigterm")
    for _ in range(2 * CLIENTS):
        started = time.monotonic()
        ask(services)
        assert time.monotonic() - started < 2.0, "nobody waits for the one that drains"
    assert services.show(SECOND, "SubState") == "stop-sigterm"
    provider.release("taken-out")
    for client in held:
        assert client.read().complete
        client.close()
    services.wait_for(SECOND, "running")
    assert services.show("perdure-daemon@2.socket", "ActiveState") == "active"
    services.systemctl("disable", "--now", "perdure-daemon@2.socket", SECOND)
    services.wait_for(SECOND, "dead")
    assert not list((services.machine.root / "etc/systemd/system/perdure.target.wants").glob("*@2*"))
    ask(services)


def requests_of(services: Services, unit: str) -> int:
    """How many requests a daemon says it is answering."""
    found = re.search(r"(\d+) requests?", services.show(unit, "StatusText"))
    return int(found[1]) if found else 0


def test_daemon_can_reach_the_worker_and_not_open_the_database(services: Services) -> None:
    facts = process(services, DAEMON)
    uid, gid, groups = facts["Uid"].split()[0], facts["Gid"].split()[0], facts["Groups"].split()
    perdure = services.machine.run("getent", "group", "perdure").split(":")[2]
    assert perdure in groups and int(uid) > 1_000
    assert services.machine.run("getent", "passwd", uid).startswith("perdure-daemon:")
    tried = [f"--reuid={uid}", f"--regid={gid}", f"--groups={','.join({*groups, gid})}"]
    python = f"{PREFIX}/.venv/bin/python"
    # By owner and mode alone, outside of its walls; and a user who is not in the group reaches nothing.
    assert services.machine.run("setpriv", *tried, python, "-c", PROBE) == "PermissionError reached\n"
    stranger = ["--reuid=65534", "--regid=65534", "--clear-groups"]
    assert services.machine.run("setpriv", *stranger, python, "-c", PROBE) == "PermissionError PermissionError\n"
    assert services.machine.run(python, "-c", PROBE) == "opened reached\n", "root could, so the probe can tell"
    # Within its walls not even root's eyes would find it.
    inside = ["nsenter", "-t", str(services.pid(DAEMON)), "-m", "ls", "-A", "/var/lib/perdure"]
    assert services.machine.run(*inside) == ""
    database = services.machine.run("stat", "-c", "%U %a", "/var/lib/perdure", DATABASE, "/run/perdure/worker.sock")
    assert database.splitlines() == ["perdure 700", "perdure 600", "perdure 660"]


def process(services: Services, unit: str) -> dict[str, str]:
    """What the kernel says of a unit's process."""
    status = services.machine.run("cat", f"/proc/{services.pid(unit)}/status")
    return dict(line.split(":\t", 1) for line in status.splitlines())


def test_walls_stand_in_the_kernel(services: Services) -> None:
    for unit in (WORKER, DAEMON):
        facts = process(services, unit)
        assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2"), unit
        assert {facts[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}, unit
    networks = {
        unit: services.machine.run("readlink", f"/proc/{services.pid(unit)}/ns/net") for unit in (WORKER, DAEMON)
    }
    assert networks[WORKER] != networks[DAEMON] == services.machine.run("readlink", "/proc/1/ns/net")
    for unit, exposure_max in ((WORKER, 1.0), (DAEMON, 1.5)):
        judged = services.machine.run("systemd-analyze", "security", "--no-pager", unit)
        found = re.search(r"Overall exposure level for .*: ([0-9.]+)", judged)
        assert found and float(found[1]) <= exposure_max, judged


def test_code_that_is_made_while_it_runs_is_not_executed(services: Services) -> None:
    """MemoryDenyWriteExecute and the filter, from inside: the same probe in a unit with the worker's walls."""
    program = "import mmap, os; %s"
    walls = ("MemoryDenyWriteExecute", "SystemCallFilter", "SystemCallErrorNumber", "NoNewPrivileges")
    text = (services.machine.root / f"etc/systemd/system/{WORKER}").read_text("utf-8")
    same = [f"--property={line}" for line in text.splitlines() if line.partition("=")[0] in walls]

    def tried(statement: str) -> str:
        command = ["systemd-run", "--quiet", "--wait", "--pipe", *same, f"{PREFIX}/.venv/bin/python", "-c"]
        return services.machine.run(*command, program % statement, check=False)

    assert "PermissionError" in tried("mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)")
    assert "PermissionError" in tried("os.setpriority(os.PRIO_PROCESS, 0, 5)")
    assert tried("mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE)") == ""


def test_worker_that_refuses_its_database_stays_down_and_daemons_go_on(services: Services) -> None:
    session = ask(services, "refused")
    services.systemctl("stop", WORKER)
    services.machine.run("mv", DATABASE, f"{DATABASE}.good")
    services.machine.run("sh", "-c", f"yes not-a-database | head -c 8192 > {DATABASE}; chown perdure: {DATABASE}")
    cursor = services.cursor()
    services.systemctl("start", WORKER, check=False)
    assert services.show(WORKER, "SubState") == "failed" and services.show(WORKER, "ExecMainStatus") == "78"
    (said,) = services.journal(cursor, "perdure-worker")
    assert "not a SQLite database; move it away" in said["MESSAGE"] and said["PRIORITY"] == "3"
    assert ask(services, "refused") == session
    services.wait_status(DAEMON, "degraded (worker not heard)")
    assert services.show(WORKER, "SubState") == "failed", "it is not tried again"
    services.machine.run("mv", f"{DATABASE}.good", DATABASE)
    services.systemctl("start", WORKER)
    services.wait_stored(session, 2)


def test_daemon_that_refuses_its_configuration_stays_down_with_its_socket(services: Services) -> None:
    remove = services.drop_in(SECOND, "[Service]", "Environment=PERDURE_TICK_SECONDS=soon")
    services.systemctl("start", "perdure-daemon@2.socket")
    cursor = services.cursor()
    # Whoever is dealt to it starts it, by waiting; and would again, if the socket stayed.
    waiting = [socket.create_connection((HOST, services.port)) for _ in range(HELD_MAX)]
    services.wait_for(SECOND, "failed")
    services.wait_for("perdure-daemon@2.socket", "dead")
    assert services.show(SECOND, "ExecMainStatus") == "78"
    for _ in range(8):
        ask(services)
    (said,) = services.journal(cursor, "perdure-daemon-2")
    assert "PERDURE_TICK_SECONDS" in said["MESSAGE"]
    for connection in waiting:
        connection.close()
    remove()
    services.systemctl("reset-failed", SECOND)


def test_daemons_do_not_wait_for_a_worker_whose_disk_is_sick(services: Services) -> None:
    services.stop()
    remove = services.drop_in(
        WORKER, "[Unit]", "JobRunningTimeoutSec=1", "[Service]", "ReadOnlyPaths=/var/lib/perdure", "StateDirectory="
    )
    services.systemctl("start", "perdure.target")
    assert services.show(WORKER, "SubState") == "start", "it goes on trying"
    assert "Read-only file system" in services.show(WORKER, "StatusText")
    session = ask(services, "sick")
    services.wait_status(DAEMON, "degraded (worker not there, index not loaded): 0 requests, 1 session, 3 writes")
    # What no worker took lies in a file of the daemon's, behind all its walls, and is sent by its successor.
    services.systemctl("restart", DAEMON)
    remove()
    services.systemctl("restart", WORKER)
    services.wait_stored(session, 1)


def test_worker_and_daemons_speak_tcp_with_the_drop_ins_of_the_manual(services: Services) -> None:
    manual = (ROOT / "systemd/README.md").read_text("utf-8").replace("10.0.0.5:7374", f"{HOST}:{free_ports(1)[0]}")
    blocks = [block for block in re.findall(r"(?s)```ini\n(.*?)```", manual) if "tcp://" in block]
    services.machine.run(PERDURE, "keys", "/etc/perdure/keys")
    services.machine.run("chown", "-R", "perdure", "/etc/perdure/keys")
    services.stop()
    removers = [services.drop_in(unit, block) for unit, block in zip((WORKER, TEMPLATE), blocks, strict=True)]
    services.systemctl("start", "perdure.target")
    services.wait_ready()
    session = ask(services, "over-tcp")
    services.wait_stored(session, 1)
    assert services.machine.run("sh", "-c", "ls /run/perdure/worker.sock 2>&1", check=False).startswith("ls: cannot")
    services.stop()
    for remove in removers:
        remove()
    services.systemctl("start", "perdure.target")


def test_stop_ends_daemons_first_and_units_are_removed_when_they_are_down(services: Services) -> None:
    session = ask(services, "stopped")
    assert "runs; `systemctl stop" in services.perdure("install-units", "--remove", check=False)
    cursor = services.cursor()
    services.stop()
    for unit in (WORKER, DAEMON):
        assert (services.show(unit, "Result"), services.show(unit, "ExecMainStatus")) == ("success", "0"), unit
    ends = [line for line in services.journal(cursor, *LOGS) if line["MESSAGE"].endswith("stopped")]
    assert [line["SYSLOG_IDENTIFIER"] for line in ends] == ["perdure-daemon-1", "perdure-worker"]
    with pytest.raises(ConnectionRefusedError):
        RawClient(HOST, services.port)

    services.perdure("install-units", "--remove")
    services.systemctl("daemon-reload")
    left = services.machine.run("find", "/etc/systemd", "/etc/sysusers.d", "-name", "perdure*", "!", "-name", "*.d")
    assert left == ""
    assert services.machine.run("ls", DATABASE, CONFIG)
    # The address is the one in the configuration, which stayed.
    services.perdure("install-units")
    services.systemctl("daemon-reload")
    services.systemctl("enable", "--now", "perdure.target", "perdure-backup.timer")
    services.wait_ready()
    assert ask(services, "stopped") == session


def test_reload_reads_prices_and_limits_again_and_replaces_nobody(services: Services) -> None:
    before = {unit: services.pid(unit) for unit in (WORKER, DAEMON)}
    config = (services.machine.root / CONFIG.lstrip("/")).read_text("utf-8")
    costs, caps = [0], []
    for input_dollars, window in ((2, 40_000), (20, 50_000)):
        table = f"input = {input_dollars}, output = {5 * input_dollars}, context_window = {window}"
        services.machine.write(CONFIG, f'{config}\n[models]\n"in-house-9b" = {{ {table} }}\n')
        services.systemctl("reload", WORKER, "perdure-daemon@*.service")
        with RawClient(HOST, services.port) as client:
            answer = take_turn(client, "chat", "hello", session="priced", model="in-house-9b")
        shown = services.sessions()[answer.header("x-perdure-session")]
        costs.append(shown["cost_nanousd"])
        caps.append(shown["gradient"]["dynamic_context_cap"])
    assert costs[2] - costs[1] == 10 * (costs[1] - costs[0]) > 0, "the same turn, at ten times the price"
    assert caps[0] <= 40_000 and caps[1] <= 50_000
    assert {unit: services.pid(unit) for unit in (WORKER, DAEMON)} == before
    services.machine.write(CONFIG, config)
    services.systemctl("reload", WORKER, "perdure-daemon@*.service")


def test_journal_has_one_clean_line_per_event_with_its_priority(services: Services) -> None:
    cursor = services.cursor()
    ask(services, "logged")
    services.systemctl("reload", DAEMON)
    services.signal(WORKER, "KILL")
    ask(services, "logged")
    services.wait_for(WORKER, "running")
    services.wait_ready()
    ended = eventually(
        lambda: [line for line in services.journal(cursor, *LOGS) if "is heard again" in line["MESSAGE"]], what="heard"
    )
    assert [line["PRIORITY"] for line in ended] == ["6"]
    lines = services.journal(cursor, *LOGS)
    for line in lines:
        # The journal has time, level, program and pid itself.
        assert re.match(r"[a-z]", line["MESSAGE"]), line["MESSAGE"]
        assert not re.search(r"\d\d:\d\d:\d\d|INFO|WARNING|\[\d+\]", line["MESSAGE"]), line["MESSAGE"]
    said = {line["MESSAGE"].split(" request=")[0]: line["PRIORITY"] for line in lines}
    assert said["turn settled"] == "6"
    assert [priority for text, priority in said.items() if text.startswith("the worker is not heard")] == ["4"]
    settled = [line["MESSAGE"] for line in lines if line["MESSAGE"].startswith("turn settled")]
    assert len(settled) == 2 and all("session=" in text for text in settled)


def test_backup_is_made_by_its_unit_and_read_by_nobody_else(services: Services) -> None:
    services.systemctl("start", "perdure-backup.service")
    assert services.show("perdure-backup.service", "Result") == "success"
    listed = services.machine.run("find", "/var/lib/perdure/backups", "-name", "*.db", "-printf", "%u %m %f\n")
    assert re.fullmatch(r"perdure 600 perdure-\d{8}T\d{6}Z\.db\n", listed), listed
    services.systemctl("start", "perdure-backup.timer")
    assert services.show("perdure-backup.timer", "NextElapseUSecRealtime")
