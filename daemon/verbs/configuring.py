"""The flags that ask about the settings instead of starting anything: `--check-config`, `--print-config`.

One rule: nothing is made, bound or locked by asking.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable

from daemon.verbs.parsing import Parser, flags_of
from daemon.verbs.screen import say, screen
from worker import runtime
from worker.configured import listed, table
from worker.curve import daemon_keys, worker_keys
from worker.settings import BadSettings, Settings, loaded, unheard


def add_flags(parser: Parser) -> None:
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--check-config", action="store_true", help="say whether the settings can be used, and end")
    asked.add_argument("--print-config", action="store_true", help="show every setting and where it is from, and end")
    parser.add_argument("--json", action="store_true", help="with one of these: as JSON")


def is_asked(options: argparse.Namespace) -> bool:
    """Raises Fatal where it is not to be told what is asked."""
    if options.json and not (options.print_config or options.check_config):
        raise runtime.Fatal(runtime.EXIT_USAGE, "--json goes with --check-config or --print-config")
    return bool(options.check_config or options.print_config)


def answer(
    options: argparse.Namespace,
    *,
    worker: bool,
    daemon: bool,
    check: Callable[[Settings], None] = lambda settings: None,
) -> int:
    """What was asked.  Raises BadSettings or Fatal where the settings can not be used by that program; `check` raises
    Fatal for what it can not take beyond that."""
    read = loaded(flags_of(options), os.environ)
    if options.print_config:
        print(json.dumps(listed(read), indent=2) if options.json else table(read, screen().width))
        return runtime.EXIT_OK
    try:
        check(read.settings)
        _check_keys(read.settings, worker=worker, daemon=daemon)
    except runtime.Fatal as fatal:
        if not options.json:
            raise
        return _tell_json(read.path, str(fatal), fatal.status)
    if options.json:
        return _tell_json(read.path)
    for said in unheard(os.environ):
        say(said)
    print(f"ok: {read.path or 'no file'}")
    return runtime.EXIT_OK


def refuse(error: BadSettings, options: argparse.Namespace) -> int:
    """What was asked, of settings that can not be used.  Raises BadSettings where it is to be told in one line."""
    if not (options.check_config and options.json):
        raise error
    path = options.config or os.environ.get("PERDURE_CONFIG", "")
    return _tell_json(path, str(error), runtime.EXIT_CONFIGURATION)


def _check_keys(settings: Settings, *, worker: bool, daemon: bool) -> None:
    if worker:
        worker_keys(settings.worker_url, settings.curve_dir)
        if settings.group:
            runtime.group_named(settings.group)
    if daemon:
        daemon_keys(settings.worker_url, settings.curve_dir)


def _tell_json(path: str, fault: str = "", status: int = runtime.EXIT_OK) -> int:
    """Faults one by one, each with the flag, variable or file that it was found in, where that is known."""
    shown = {
        "ok": not fault,
        "file": path or None,
        "errors": [{"origin": origin_in(fault, path), "message": fault}] if fault else [],
        "warnings": [{"origin": said.partition(" ")[0], "message": said} for said in unheard(os.environ)],
    }
    print(json.dumps(shown, indent=2))
    return status


def origin_in(fault: str, path: str) -> str | None:
    """A fault that is one of a setting begins with where it is from."""
    origin = fault.partition(": ")[0]
    if path and origin == path:
        return path
    return origin.partition(".")[0] if origin.startswith(("PERDURE_", "--")) else None
