"""`--check-config` and `--print-config`: what a start would say, without starting anything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.processes import Gateway
from tests.provider import ScriptedProvider
from worker.runtime import EXIT_CONFIGURATION, EXIT_OK, EXIT_USAGE
from worker.settings import Settings, unheard

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


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


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


def test_json_is_asked_for_with_one_of_the_two() -> None:
    done = perdure("up", "--json")
    assert done.returncode == EXIT_USAGE and "--print-config" in done.stderr and "--check-config" in done.stderr
    assert perdure("up", "--check-config", "--print-config").returncode == EXIT_USAGE


@pytest.mark.parametrize("program", PROGRAMS)
def test_check_as_json_of_what_can_be_used(program: str, config: Path) -> None:
    done = perdure(program, "--check-config", "--json", "--config", str(config))
    assert (done.returncode, done.stderr) == (EXIT_OK, "")
    assert json.loads(done.stdout) == {"ok": True, "file": str(config), "errors": [], "warnings": []}


@pytest.mark.parametrize(
    ("text", "arguments", "environ", "origin", "said"),
    [
        ("tick_second = 5", (), {}, "FILE", "did you mean 'tick_seconds'"),
        ("tick_seconds = ", (), {}, "FILE", "not TOML"),
        ("tick_seconds = 0", (), {}, "FILE", "is not between"),
        ("[models.m]\ninput = 3", (), {}, "FILE", "models.m: a price without output is none"),
        ("", (), {"PERDURE_TICK_SECONDS": "soon"}, "PERDURE_TICK_SECONDS", "is not a number"),
        ("", ("--drain-seconds", "x"), {}, "--drain-seconds", "is not a number"),
        ("", (), {"PERDURE_GROUP": "no-such-group"}, "PERDURE_GROUP", "no group is called"),
        ("", (), {"PERDURE_LISTEN": "[::1]:7373"}, None, "supervisord hands on no IPv6 socket"),
    ],
)
def test_check_as_json_of_what_can_not_be_used(
    text: str, arguments: tuple[str, ...], environ: dict[str, str], origin: str | None, said: str, config: Path
) -> None:
    config.write_text(text)
    done = perdure("up", "--check-config", "--json", *arguments, PERDURE_CONFIG=str(config), **environ)
    assert (done.returncode, done.stderr) == (EXIT_CONFIGURATION, "")
    told = json.loads(done.stdout)
    (error,) = told["errors"]
    assert (told["ok"], told["file"]) == (False, str(config))
    assert error["origin"] == (str(config) if origin == "FILE" else origin)
    assert said in error["message"]


# -- variables that nobody looks at --------------------------------------------------------------------------------

MISTYPED: Final = {"PERDURE_TICK_SECOND": SECRET}
MEANT: Final = "PERDURE_TICK_SECOND is not looked at: did you mean PERDURE_TICK_SECONDS?"


def test_check_tells_of_a_variable_that_nobody_looks_at(config: Path) -> None:
    done = perdure("up", "--check-config", "--config", str(config), **MISTYPED)
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_OK, f"ok: {config}\n", f"perdure: {MEANT}\n")
    done = perdure("up", "--check-config", "--json", "--config", str(config), **MISTYPED)
    told = json.loads(done.stdout)
    assert (told["ok"], told["warnings"]) == (True, [{"origin": "PERDURE_TICK_SECOND", "message": MEANT}])


def test_doctor_warns_of_a_variable_that_nobody_looks_at(tmp_path: Path) -> None:
    done = perdure("doctor", "--offline", "--json", PERDURE_STATE_DIR=str(tmp_path), **MISTYPED)
    (finding,) = [each for each in json.loads(done.stdout)["findings"] if each["check"] == "configuration"]
    assert (finding["level"], finding["text"]) == ("warning", MEANT)
    assert SECRET not in done.stdout


@pytest.mark.parametrize("program", ["worker", "daemon"])
def test_program_that_starts_warns_of_a_variable_that_nobody_looks_at_and_goes_on(
    program: str, provider: ScriptedProvider
) -> None:
    with Gateway(provider, tick_second=SECRET) as gateway:
        gateway.start()
        assert f"WARNING {program}[{gateway.pid(program)}] {MEANT}" in gateway.log(program)
        assert SECRET not in gateway.log(program)


def test_every_variable_of_the_programs_is_one_that_is_looked_at() -> None:
    root = Path(__file__).resolve().parents[2]
    places = [*(root / "daemon").rglob("*.py"), *(root / "worker").rglob("*.py"), root / "supervisord.conf"]
    places += [path for path in (root / "systemd").iterdir() if path.suffix != ".md"]
    named = {name for path in places for name in re.findall(r"PERDURE_[A-Z]+(?:_[A-Z]+)*", path.read_text("utf-8"))}
    assert len(named) > 15
    # Of these one word is a place-holder's.
    assert [said for said in unheard(dict.fromkeys(named, "x")) if "_DIR " not in said] == []
