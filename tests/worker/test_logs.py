"""Logs: what a line holds in each form, and that whatever is put into one, it stays one line."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.logs import EXCEPTIONS_MAX, exception_in_a_line, fields, last_line, log_uncaught, start_logging

ROOT = Path(__file__).resolve().parents[2]
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
SECRET = "sk-Mk-secret"

pytestmark = pytest.mark.usefixtures("logging_as_it_was")


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, sys.unraisablehook
    yield
    root.handlers, root.level = handlers, level
    sys.excepthook, sys.unraisablehook = hooks
    for name in ("daemon", "worker"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


# -- the forms


def test_text_line_has_time_level_program_text_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log = start_logging("worker", "info")
    log.info("ready at %s", "ipc:///x", extra=fields(schema=3, seconds=0.123456, why=None, is_new=True))
    log.debug("not at this level")
    logging.getLogger("library").info("libraries are quiet")
    (said,) = lines(capsys)
    assert re.fullmatch(TIME + r" INFO worker\[\d+\] ready at ipc:///x schema=3 seconds=0.1235 is_new=true", said)


def test_json_line_is_an_object_with_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    log = start_logging("worker", "info", "json")
    log.warning("ready at %s", "ipc:///x", extra=fields(schema=3, seconds=0.123456, why=None, names=["a"]))
    (said,) = map(json.loads, lines(capsys))
    assert re.fullmatch(TIME, said.pop("time"))
    assert said == {
        "level": "warning",
        "program": "worker",
        "pid": os.getpid(),
        "event": "ready at ipc:///x",
        "schema": 3,
        "seconds": 0.1235,
        "names": ["a"],
    }


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("claude-sonnet-4-5", "claude-sonnet-4-5"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "hi"', r'"say \"hi\""'),
        ("back\\slash", r'"back\\slash"'),
        ("line\nbreak\x1b[2J", r'"line\nbreak\u001b[2J"'),
        ("Büro", '"Büro"'),
        ("\u2028\u202e", r'"\u2028\u202e"'),
        (["x", "y"], "x,y"),
        ({"x": 1}, r'"{\"x\": 1}"'),
        (7, "7"),
        (1.0, "1.0"),
    ],
)
def test_value_of_a_field_is_quoted_where_it_could_be_misread(
    capsys: pytest.CaptureFixture[str], value: object, written: str
) -> None:
    start_logging("worker", "info").info("event", extra=fields(name=value))
    (said,) = lines(capsys)
    assert said.partition(" event ")[2] == f"name={written}"


@pytest.mark.parametrize("form", ["text", "json"])
@given(text=st.text(), value=st.text())
@settings(max_examples=100, deadline=None, database=None, print_blob=True)
def test_whatever_is_logged_is_one_line(form: str, text: str, value: str) -> None:
    start_logging("worker", "info", form)
    (handler,) = logging.getLogger().handlers
    record = logging.LogRecord("worker", logging.INFO, "", 0, "%s", (text,), None)
    record.__dict__.update(fields(value=value))
    line = handler.format(record)
    assert line.isprintable() and len(line.splitlines()) == 1
    if form == "json":
        said = json.loads(line)
        assert (said["event"], said["value"]) == (text, value)


def test_logging_started_again_has_the_new_level_and_form_for_loggers_of_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = start_logging("daemon", "warning")
    log.info("not yet")
    start_logging("daemon", "info", "json")
    logging.getLogger("daemon.http_server").info("now")
    log.info("now")
    assert [json.loads(line)["event"] for line in lines(capsys)] == ["now", "now"]


# -- exceptions


def failure() -> Exception:
    def fail() -> None:
        try:
            raise LookupError(SECRET)
        except LookupError as error:
            raise ValueError(f"can not read {SECRET}\nand more") from error

    try:
        fail()
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("form", ["text", "json"])
def test_exception_is_told_by_kind_and_place_in_the_same_line(capsys: pytest.CaptureFixture[str], form: str) -> None:
    start_logging("worker", "info", form).error("stopping", exc_info=failure())
    (said,) = lines(capsys)
    assert SECRET not in said
    assert re.search(r"Traceback: ValueError \(its text is not logged.*\) at worker/test_logs.py:\d+ in failure", said)
    assert re.search(r"; after LookupError \(its text.* in fail", said)


def test_exceptions_in_a_circle_end() -> None:
    one, other = ValueError(), LookupError()
    one.__cause__, other.__cause__ = other, one
    assert exception_in_a_line(one).count("(its text is not logged") == EXCEPTIONS_MAX


def test_uncaught_exception_is_logged_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    log_uncaught(start_logging("worker", "info"))
    error = failure()
    sys.excepthook(type(error), error, error.__traceback__)
    (said,) = lines(capsys)
    assert " CRITICAL " in said and "uncaught exception=" in said and SECRET not in said


# -- the last line


def test_last_line_is_a_persons_before_there_is_a_log_and_with_a_text_log() -> None:
    assert last_line("perdure worker", "no\nway", 78) == r"perdure worker: no\nway"
    start_logging("worker", "info")
    assert last_line("perdure worker", "no way", 78) == "perdure worker: no way"


def test_last_line_is_an_object_in_a_log_of_objects() -> None:
    start_logging("worker", "info", "json")
    said = json.loads(last_line("perdure worker", "no way", 78))
    assert (said["level"], said["event"], said["exit_status"]) == ("error", "no way", 78)


# -- the journal

SCRIPT = """
import logging, sys
from worker.logs import last_line, start_logging, fields
log = start_logging("worker", "debug", sys.argv[1])
for level in (10, 20, 30, 40, 50):
    log.log(level, "event", extra=fields(n=level))
print(last_line("perdure worker", "no way", 78), file=sys.stderr)
"""


def journal(form: str, *, is_ours: bool = True) -> list[str]:
    """What arrives in a socket that plays the journal: its number is in the environment, as systemd puts it there."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = os.fstat(theirs.fileno())
        stream = f"{found.st_dev}:{found.st_ino + (not is_ours)}"
        environ = {"PYTHONPATH": str(ROOT), "JOURNAL_STREAM": stream}
        subprocess.run(
            [sys.executable, "-P", "-c", SCRIPT, form], env=environ, stderr=theirs.fileno(), check=True, timeout=30
        )
        theirs.shutdown(socket.SHUT_RDWR)
        return ours.makefile().read().splitlines()


def test_line_in_the_journal_has_its_priority_and_leaves_the_rest_to_it() -> None:
    levels = [f"<{priority}>event n={level}" for priority, level in ((7, 10), (6, 20), (4, 30), (3, 40), (2, 50))]
    assert journal("text") == [*levels, "<3>perdure worker: no way"]


def test_line_in_the_journal_may_be_an_object() -> None:
    said = journal("json")
    assert [line[:3] for line in said] == ["<7>", "<6>", "<4>", "<3>", "<2>", "<3>"]
    assert json.loads(said[1][3:]) == {"event": "event", "n": 20}


def test_line_for_another_stream_than_the_journals_is_an_ordinary_one() -> None:
    """Whoever redirects a service's output keeps the variable, not the stream."""
    assert all(re.match(TIME, line) for line in journal("text", is_ours=False)[:-1])
