"""Logs: one event, one line, for a person, a program or the journal to read.

One rule: a line says what happened and quotes nobody: ids, names, counts and times, never a body, a key or the text of
an exception, which may hold either.

Theory of operation.  An event is a text and fields.  The text is for people and does not change where it can be
helped; fields are for programs: `log.info("turn settled", extra=fields(request=…, seconds=…))`.  What is called a
*form* here is how both become a line:

    text      2026-01-31T12:00:00.000Z INFO daemon[4711] turn settled request=9f… seconds=1.204
    json      {"time":"2026-01-31T12:00:00.000Z","level":"info","program":"daemon","pid":4711,"event":"turn settled",…}

Where standard error is the system's journal, as under systemd, a line begins with its priority (`<6>`), and time,
level, program and pid are left out: the journal has them.  Whatever a line holds, it is one line: what a peer sent
can not pretend to be an event of ours.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Final

FORMS: Final = ("text", "json")

EXCEPTIONS_MAX: Final = 20
"""No further exceptions that led to each other are shown after so many; they may go in a circle."""
PLACES_MAX: Final = 30
"""Innermost places shown of one exception: what leads to them is the same event loop every time."""


def start_logging(program: str, level: str, form: str = "text") -> logging.Logger:
    """Log to standard error from now on; may be called again with another level or form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(program, form, in_journal=is_journal()))
    root = logging.getLogger()
    root.handlers = [handler]
    # Libraries speak up only when something is wrong.
    root.setLevel(logging.WARNING)
    for name in ("daemon", "worker"):
        logging.getLogger(name).setLevel(level.upper())
    return logging.getLogger(program)


def fields(**values: object) -> dict[str, dict[str, object]]:
    """For `extra`: what a program wants to know of the event.  None is left out."""
    return {_FIELDS: {name: value for name, value in values.items() if value is not None}}


def log_uncaught(log: logging.Logger) -> None:
    """Log what nobody catches, which Python itself would show with its text."""
    sys.excepthook = lambda _kind, error, _trace: log.critical("uncaught", exc_info=error)
    threading.excepthook = lambda told: log.critical("uncaught in a thread", exc_info=told.exc_value or True)
    sys.unraisablehook = lambda told: log.error("uncaught in clearing up", exc_info=told.exc_value or True)


def is_journal() -> bool:
    """Whether standard error goes to the system's journal: it names its stream to those that it starts."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


def last_line(program: str, message: str, status: int) -> str:
    """What a process says when it ends, in the form that its log has; a person's, before there is a log."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, _Json):
            record = logging.LogRecord(program, logging.ERROR, "", 0, message, None, None)
            record.__dict__.update(fields(exit_status=status))
            return handler.formatter.format(record)
    return f"{_priority(logging.ERROR) if is_journal() else ''}{program}: {_printable(message)}"


class _Line(logging.Formatter):
    """What both forms have in common."""

    def __init__(self, program: str, *, in_journal: bool) -> None:
        super().__init__()
        self._program = program
        self._pid = os.getpid()
        self._in_journal = in_journal

    def format(self, record: logging.LogRecord) -> str:
        priority = _priority(record.levelno) if self._in_journal else ""
        return priority + self._line(record, _fields_of(record))

    def _line(self, record: logging.LogRecord, values: Mapping[str, object]) -> str:
        raise NotImplementedError


class _Text(_Line):
    def _line(self, record: logging.LogRecord, values: Mapping[str, object]) -> str:
        head = f"{_time(record.created)} {record.levelname} {self._program}[{self._pid}] "
        pairs = [f"{name}={_value(value)}" for name, value in values.items()]
        return ("" if self._in_journal else head) + " ".join([_printable(record.getMessage()), *pairs])


class _Json(_Line):
    def _line(self, record: logging.LogRecord, values: Mapping[str, object]) -> str:
        head: dict[str, object] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "program": self._program,
            "pid": self._pid,
        }
        # Escapes all that is not ASCII, line breaks among it.
        return json.dumps(
            {**({} if self._in_journal else head), "event": record.getMessage(), **values},
            separators=(",", ":"),
            default=str,
        )


def _formatter(program: str, form: str, *, in_journal: bool) -> _Line:
    return (_Json if form == "json" else _Text)(program, in_journal=in_journal)


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    given: dict[str, object] = {
        name: round(value, _DECIMALS) if isinstance(value, float) else value
        for name, value in getattr(record, _FIELDS, {}).items()
    }
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    return given | ({"exception": exception_in_a_line(error)} if error is not None else {})


def exception_in_a_line(error: BaseException) -> str:
    """An exception by its kind and its places in the program.  Its text may quote what the program worked on, and
    that may be a prompt or a key."""
    return "Traceback: " + "; after ".join(_kinds_and_places(error))


def _kinds_and_places(error: BaseException | None) -> Iterator[str]:
    for _ in range(EXCEPTIONS_MAX):
        if error is None:
            return
        places = [
            f"{_short(frame.filename)}:{frame.lineno} in {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)[-PLACES_MAX:]
        ]
        yield f"{type(error).__name__} (its text is not logged: it may quote a request) at {' > '.join(places)}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _short(path: str) -> str:
    """A file's last two names: enough to find it, and a line has room for many."""
    return "/".join(path.split("/")[-2:])


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        text = ",".join(map(str, value))
    else:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text, ensure_ascii=not text.isprintable())


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _time(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds * 1000) % 1000:03}Z"


def _priority(level: int) -> str:
    """The journal's, which are syslog's."""
    return next(f"<{number}>" for least, number in _PRIORITIES if level >= least)


_FIELDS: Final = "perdure_fields"
"""The attribute of a record that holds them; records have many others, whose names are logging's."""
_DECIMALS: Final = 4
"""Of seconds: a tenth of a millisecond."""
_BARE: Final = re.compile(r"[!#-<>-\[\]-~]+")
"""A value that needs no quotes: visible ASCII without quotes, = and backslash."""
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
