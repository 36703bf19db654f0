"""Settings as an operator sees them: each with its value and where it is from, and what a second reading changes.

One rule: a secret is never shown, only whether there is one.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from decimal import Decimal
from logging import Logger
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from worker.logs import fields
from worker.runtime import Fatal
from worker.settings import (
    DEFAULT,
    RELOADED,
    SECRET,
    BadSettings,
    Loaded,
    Model,
    Settings,
    checked,
    loaded,
    typed,
    without_handed_on,
)

MASK: Final = "(set)"
FILE: Final = "file"


class Change(Struct, frozen=True):
    """One value that a second reading found to be another one than the value in force."""

    name: str
    """The setting's; of a table with the entry's: `models.NAME`."""
    before: Any
    now: Any
    is_live: bool
    """It can be put in force while the program runs."""


def read_again(
    in_force: Settings,
    environ: Mapping[str, str],
    names: Collection[str],
    log: Logger,
    check: Callable[[Settings], None] = lambda settings: None,
) -> Settings | None:
    """What is in force after a second reading, each change of one of the program's settings (`names`) told in the log;
    None if the settings can not be used, and stay as they were.  `check` raises Fatal for what this program can not
    take."""
    try:
        read = loaded({}, without_handed_on(environ, names))
        settings = replace(in_force, **{name: getattr(read.settings, name) for name in RELOADED})
        # What changes and what stays must go together too.
        check(checked(settings))
    except (BadSettings, Fatal) as error:
        log.error("settings stay as they were: %s", error)
        return None
    found = changes(in_force, read.settings, names)
    for change in found:
        if change.is_live:
            log.info("setting changed", extra=fields(setting=change.name, before=change.before, now=change.now))
        else:
            said = fields(in_force=change.before, wanted=change.now)
            log.warning("needs a restart: %s", change.name, extra=said)
    for name, value in overruled(read, in_force, names).items():
        said = fields(in_force=shown(name, getattr(in_force, name)), in_file=value)
        log.warning("%s in %s is not looked at: %s is set", name, read.path, read.origins[name], extra=said)
    live = dict.fromkeys(change.name.partition(".")[0] for change in found if change.is_live)
    log.info("settings read again: %s", ", ".join(live) or "nothing has changed")
    return settings


def changes(before: Settings, now: Settings, names: Collection[str]) -> list[Change]:
    """Value by value, in the order of the settings."""
    found: list[Change] = []
    for name in Settings.__struct_fields__:
        old, new = getattr(before, name), getattr(now, name)
        if name not in names or old == new:
            continue
        is_live = name in RELOADED
        if isinstance(old, dict):
            entries = [entry for entry in {**old, **new} if old.get(entry) != new.get(entry)]
            found += [Change(f"{name}.{e}", _plain(old.get(e)), _plain(new.get(e)), is_live) for e in entries]
        else:
            found.append(Change(name, shown(name, old), shown(name, new), is_live))
    return found


def overruled(read: Loaded, in_force: Settings, names: Collection[str]) -> dict[str, Any]:
    """What somebody wrote into the file to no effect."""
    found: dict[str, Any] = {}
    for name, value in read.overruled.items():
        with suppress(BadSettings):
            meant = typed(name, value, read.path)
            if name in names and meant != getattr(in_force, name):
                found[name] = shown(name, meant)
    return found


def listed(read: Loaded) -> list[dict[str, Any]]:
    """Every setting, its value, and where that is from."""
    return [
        {
            "setting": name,
            "value": shown(name, getattr(read.settings, name)),
            "origin": " ".join(_origin(read, name)),
        }
        for name in Settings.__struct_fields__
    ]


def table(read: Loaded, width: int) -> str:
    """The same for people: long values go on below themselves."""
    lines = [_LINE.format("SETTING", "FROM", "VALUE")]
    for name in Settings.__struct_fields__:
        kind, *where = _origin(read, name)
        value = shown(name, getattr(read.settings, name))
        first, *more = _wrapped(_text(value), width - len(_LINE.format("", "", "")))
        lines.append(_LINE.format(name, kind if kind == FILE else (where or [kind])[0], first).rstrip())
        lines += [_LINE.format("", "", part) for part in more]
    return "\n".join([*([f"file: {read.path}", ""] if read.path else []), *lines])


def _wrapped(text: str, width: int) -> list[str]:
    """Cut at spaces alone: whoever copies a path or a name wants all of it."""
    return textwrap.wrap(text, max(width, _VALUE_MIN), break_long_words=False, break_on_hyphens=False) or [""]


def _origin(read: Loaded, name: str) -> list[str]:
    origin = read.origins[name]
    if origin == DEFAULT:
        return [DEFAULT]
    return ["flag" if origin.startswith("--") else FILE if origin == read.path else "environment", origin]


def shown(name: str, value: Any) -> Any:
    """A value as JSON can hold it; of a secret, whether there is one."""
    if name in SECRET:
        return MASK if value else ""
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Model):
        given = {key: getattr(value, key) for key in Model.__struct_fields__}
        return {key: _plain(each) for key, each in given.items() if each is not None}
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_entry(each)}" for key, each in value.items())
    return str(value)


def _entry(value: Any) -> str:
    return " ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else str(value)


_VALUE_MIN: Final = 20
"""Characters for a value, however narrow the terminal."""
_LINE: Final = "{:<16} {:<24} {}"
