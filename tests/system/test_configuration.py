"""`--check-config` and `--print-config`: what a start would say, without starting anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from worker.runtime import EXIT_CONFIGURATION, EXIT_OK, EXIT_USAGE
from worker.settings import Settings

pytestmark = pytest.mark.system

PERDURE: Final = str(Path(sys.executable).with_name("perdure"))
PROGRAMS: Final = ("up", "daemon", "worker")
SECRET: Final = "Mk-secret-7f"


def perdure(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PERDURE, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": "/nowhere", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "perdure.toml"
    path.write_text(f'tick_seconds = 5\ntoken = "{SECRET}"\ndaemons = 2\n[models.m]\ninput = 0.1\noutput = 2\n')
    return path


@pytest.mark.parametrize("program", PROGRAMS)
def test_check_of_what_can_be_used_says_ok_and_makes_nothing(program: str, config: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    done = perdure(program, "--check-config", "--config", str(config), PERDURE_STATE_DIR=str(state))
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_OK, f"ok: {config}\n", "")
    assert not state.exists()


@pytest.mark.parametrize(
    ("program", "text", "environ", "said"),
    [
        ("up", "tick_second = 5", {}, "did you mean 'tick_seconds'"),
        ("daemon", "[models.m]\ninput = 3", {}, "models.m: a price without output is none"),
        ("worker", "", {"PERDURE_TICK_SECONDS": "soon"}, "PERDURE_TICK_SECONDS: 'soon' is not a number"),
        ("up", "", {"PERDURE_LISTEN": "[::1]:7373"}, "supervisord hands on no IPv6 socket"),
        ("worker", 'group = "no-such-group"', {}, "no group is called 'no-such-group'"),
        (
            "daemon",
            "",
            {"PERDURE_WORKER_URL": "tcp://127.0.0.1:7374", "PERDURE_CURVE_DIR": "/not/there"},
            "/not/there",
        ),
    ],
)
def test_check_of_what_can_not_be_used_says_why_in_one_line(
    program: str, text: str, environ: dict[str, str], said: str, config: Path
) -> None:
    config.write_text(text)
    done = perdure(program, "--check-config", PERDURE_CONFIG=str(config), **environ)
    assert (done.returncode, done.stdout) == (EXIT_CONFIGURATION, "")
    assert said in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_print_has_every_setting_its_value_and_where_it_is_from(program: str, config: Path) -> None:
    arguments = (program, "--print-config", "--config", str(config), "--log-level", "debug")
    environ = {"PERDURE_DAEMONS": "3", "STATE_DIRECTORY": "/var/lib/perdure", "PERDURE_HOSTS": "a.example,b.example"}
    done = perdure(*arguments, "--json", **environ)
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    assert [each["setting"] for each in listed] == list(Settings.__struct_fields__)
    found = {each["setting"]: (each["value"], each["origin"]) for each in listed}
    expected = {
        "tick_seconds": (5.0, f"file {config}"),
        "daemons": (3, "environment PERDURE_DAEMONS"),
        "log_level": ("debug", "flag --log-level"),
        "drain_seconds": (30.0, "default"),
        "hosts": (["a.example", "b.example"], "environment PERDURE_HOSTS"),
        "state_dir": ("/var/lib/perdure", "environment STATE_DIRECTORY"),
        "token": ("(set)", f"file {config}"),
        "models": ({"m": {"input": 0.1, "output": 2}}, f"file {config}"),
    }
    assert {name: found[name] for name in expected} == expected
    page = perdure(*arguments, **environ)
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in page.stdout.splitlines() if line}
    assert rows["tick_seconds"] == ["file", "5.0"] and rows["daemons"] == ["PERDURE_DAEMONS", "3"]
    assert rows["log_level"] == ["--log-level", "debug"] and rows["models"] == ["file", "m: input 0.1 output 2"]
    assert (page.returncode, page.stderr) == (EXIT_OK, "")
    assert SECRET not in done.stdout + page.stdout


def test_print_as_json_is_asked_for_with_print() -> None:
    done = perdure("up", "--json")
    assert done.returncode == EXIT_USAGE and "--print-config" in done.stderr
    assert perdure("up", "--check-config", "--print-config").returncode == EXIT_USAGE
