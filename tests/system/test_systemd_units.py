"""The units that `perdure install-units` writes: right for this installation, understood by systemd, and walled in.

One rule: what is looked at was written by the command itself, as a process of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from daemon.app import FLUSH_SECONDS, IDLE_DRAIN_SECONDS
from daemon.verbs.units import NAMES, SYSUSERS_NAME, fill, unreachable
from tests.system.test_cli import perdure
from worker.health import CALLS_MAX, SILENT_SECONDS, TICK_SECONDS

pytestmark = pytest.mark.system

ROOT: Final = Path(__file__).resolve().parents[2]
TEMPLATES: Final = ROOT / "systemd"
needs_analyze: Final = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed (Debian: systemd)"
)


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("units")
    run = install(directory)
    assert run.returncode == 0, run.stderr
    return directory


def install(directory: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return perdure("install-units", "--directory", str(directory), *arguments, **environ)


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in directory.iterdir() if path.is_file()}


def values(unit: Path, name: str) -> list[str]:
    """What a unit says of one setting, in order."""
    return re.findall(rf"(?m)^{name}=(.*)$", unit.read_text("utf-8"))


# -- what is written -----------------------------------------------------------------------------------------------


def test_units_name_this_installation_and_nothing_is_left_open(units: Path) -> None:
    assert set(contents(units)) == {*NAMES, SYSUSERS_NAME}
    python = sys.executable
    assert values(units / "perdure-worker.service", "ExecStart") == [f"{python} -P -m worker"]
    assert values(units / "perdure-daemon@.service", "ExecStart") == [f"{python} -P -m daemon"]
    assert values(units / "perdure-daemon@.socket", "ListenStream") == ["127.0.0.1:7373"]
    for name, text in contents(units).items():
        assert not re.search(r"@[a-z_]+@", text), name
    assert {stat.S_IMODE(path.stat().st_mode) for path in units.iterdir()} == {0o644}


def test_every_template_is_installed_and_in_the_wheel() -> None:
    assert {path.name for path in TEMPLATES.iterdir()} == {*NAMES, SYSUSERS_NAME, "README.md"}
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]["force-include"]
    assert wheel["systemd"] == "daemon/systemd"
    assert wheel["perdure.example.toml"] == "daemon/perdure.example.toml"


def test_installed_again_nothing_changes_and_a_changed_file_is_put_right(tmp_path: Path) -> None:
    install(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = install(tmp_path)
    assert "wrote" not in again.stdout and again.stdout.count("as it was") == len(before)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    target = tmp_path / "perdure.target"
    text = target.read_text("utf-8")
    target.write_text(f"{text}\n[Install]\n", "utf-8")
    assert f"wrote      {target}" in install(tmp_path).stdout
    assert target.read_text("utf-8") == text


def test_dry_run_shows_all_of_it_and_writes_nothing(tmp_path: Path, units: Path) -> None:
    run = install(tmp_path / "new", "--dry-run")
    assert run.returncode == 0 and not (tmp_path / "new").exists()
    for text in contents(units).values():
        assert text in run.stdout


def test_removed_are_the_units_and_their_links_and_nothing_of_the_operators(tmp_path: Path) -> None:
    install(tmp_path)
    drop_in = tmp_path / "perdure-daemon@.service.d" / "mine.conf"
    other = tmp_path / "other.service"
    link, foreign = tmp_path / "perdure.target.wants/perdure-daemon@2.service", tmp_path / "multi-user.target.wants/a"
    for path in (drop_in, other):
        path.parent.mkdir(exist_ok=True)
        path.write_text("[Unit]\n")
    for path in (link, foreign):
        path.parent.mkdir()
        path.symlink_to(tmp_path / "perdure-daemon@.service")
    run = install(tmp_path, "--remove")
    assert run.returncode == 0
    assert set(tmp_path.iterdir()) == {drop_in.parent, other, foreign.parent}
    assert drop_in.exists() and foreign.is_symlink() and str(drop_in.parent) in run.stdout
    assert install(tmp_path, "--remove").returncode == 0


def test_address_and_drain_limit_are_those_of_the_settings(tmp_path: Path) -> None:
    config = tmp_path / "perdure.toml"
    config.write_text('listen = "[::1]:8080"\ndrain_seconds = 300\n')
    assert install(tmp_path, "--config", str(config)).returncode == 0
    assert values(tmp_path / "perdure-daemon@.socket", "ListenStream") == ["[::1]:8080"]
    assert values(tmp_path / "perdure-daemon@.service", "TimeoutStopSec") == ["320"]
    assert f"PERDURE_CONFIG={config}" in values(tmp_path / "perdure-worker.service", "Environment")
    install(tmp_path, "--listen", "localhost:9090", "--drain-seconds", "10")
    assert values(tmp_path / "perdure-daemon@.socket", "ListenStream") == ["127.0.0.1:9090"]
    assert int(values(tmp_path / "perdure-daemon@.service", "TimeoutStopSec")[0]) > 10 + FLUSH_SECONDS


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        (("--listen", "127.0.0.1:0"), {}, "the port"),
        (("--listen", "perdure.example:7373"), {"PERDURE_TOKEN": "x"}, "no name"),
        (("--listen", "0.0.0.0:7373"), {}, "set PERDURE_TOKEN"),
    ],
)
def test_what_systemd_could_not_listen_on_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], environ: Mapping[str, str], said: str
) -> None:
    run = install(tmp_path / "new", *arguments, **environ)
    assert run.returncode == 78 and said in run.stderr
    assert not (tmp_path / "new").exists()


def test_directory_that_can_not_be_made_is_refused_with_the_remedy() -> None:
    run = install(Path("/proc/nowhere"))
    assert run.returncode == 78 and "as root" in run.stderr


@pytest.mark.parametrize("path", ["/root/.venv/bin/python", "/home/me/perdure", "/tmp/perdure", "/var/tmp/x"])
def test_installation_that_services_do_not_see_is_refused_with_the_remedy(path: str) -> None:
    said = unreachable([Path("/usr"), Path(path)])
    assert said.startswith(path) and "hides" in said and "/usr/bin/python3 -m venv /opt/perdure" in said
    assert "\n" not in said


def test_installation_that_only_its_owner_can_read_is_refused(tmp_path: Path) -> None:
    place = Path("/var/lib") / f"perdure-test-{os.getpid()}"
    if os.geteuid() != 0:
        pytest.skip("only root can make a directory that services would see")
    place.mkdir(mode=0o700)
    try:
        (place / "python").touch(0o755)
        assert f"{place} is closed to other users" in unreachable([place / "python"])
        place.chmod(0o755)
        assert unreachable([place / "python"]) == ""
        (place / "python").chmod(0o600)
        assert f"{place / 'python'} is closed to other users" in unreachable([place / "python"])
    finally:
        shutil.rmtree(place)


def test_place_of_an_unknown_name_is_not_left_in_a_unit() -> None:
    assert fill("a@b_c@d perdure-daemon@%i.socket @x", {"b_c": "-"}) == "a-d perdure-daemon@%i.socket @x"
    with pytest.raises(KeyError):
        fill("@unheard_of@", {})


# -- what systemd makes of it --------------------------------------------------------------------------------------


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"SYSTEMD_PAGER": "", "LANG": "C.UTF-8"}
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


@needs_analyze
def test_verify_finds_nothing_to_say(units: Path, tmp_path: Path) -> None:
    told = analyze("verify", *(str(units / name) for name in NAMES))
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
    wrong = tmp_path / "perdure-worker.service"
    wrong.write_text((units / wrong.name).read_text("utf-8").replace("Restart=always", "Restart=alway"))
    assert "alway" in analyze("verify", str(wrong)).stderr, "it would have said something"


@needs_analyze
@pytest.mark.parametrize(
    ("unit", "exposure_max"), [("perdure-worker", 1.0), ("perdure-daemon@", 1.5), ("perdure-backup", 1.0)]
)
def test_exposure_is_below_what_is_promised(units: Path, tmp_path: Path, unit: str, exposure_max: float) -> None:
    instance = tmp_path / f"{unit}1.service".replace("worker1", "worker").replace("backup1", "backup")
    shutil.copyfile(units / f"{unit}.service", instance)
    said = analyze("security", "--offline=yes", f"--threshold={int(10 * exposure_max)}", str(instance))
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", said.stdout)
    assert found and float(found[1]) <= exposure_max, said.stdout
    assert said.returncode == 0, said.stdout + said.stderr


# -- what belongs together -----------------------------------------------------------------------------------------


def test_walls_of_the_worker_stand_around_the_backup_too(units: Path) -> None:
    """But for the one thing that a backup does and the worker does not."""

    def walls(name: str) -> set[str]:
        text = (units / name).read_text("utf-8")
        return set(re.findall(r"(?m)^[A-Z]\w+=.*$", text[text.index("PrivateNetwork=") :])) - {
            "WantedBy=perdure.target"
        }

    filters = {"SystemCallFilter=~@privileged @resources", "SystemCallFilter=sched_setscheduler chown"}
    assert walls("perdure-worker.service") - walls("perdure-backup.service") == filters
    assert walls("perdure-backup.service") - walls("perdure-worker.service") == {"SystemCallFilter=~@privileged"}


def test_times_fit_the_programs(units: Path) -> None:
    worker, daemon = units / "perdure-worker.service", units / "perdure-daemon@.service"
    assert float(values(worker, "WatchdogSec")[0]) == SILENT_SECONDS
    assert float(values(daemon, "WatchdogSec")[0]) == CALLS_MAX * TICK_SECONDS
    assert float(values(daemon, "TimeoutStopSec")[0]) >= 30 + FLUSH_SECONDS + IDLE_DRAIN_SECONDS
    for unit in (worker, daemon):
        assert values(unit, "RestartPreventExitStatus") == ["78 2"]
        assert values(unit, "Restart") == ["always"] and float(values(unit, "RestartSec")[0]) >= 1


def test_every_setting_that_is_not_obvious_is_explained() -> None:
    """No more than a few lines of settings in a row go without a comment."""
    for name in NAMES:
        blocks = re.split(r"(?m)^(?:#.*|\[.*|)$", (TEMPLATES / name).read_text("utf-8"))
        longest = max(len(block.strip().splitlines()) for block in blocks)
        assert longest <= (40 if name == "perdure-backup.service" else 9), name
