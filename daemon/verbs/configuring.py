"""The flags that ask about the settings instead of starting anything: `--check-config`, `--print-config`.

One rule: nothing is made, bound or locked by asking.
"""

from __future__ import annotations

import argparse
import json
import os

from daemon.verbs.parsing import Parser, flags_of
from worker import runtime
from worker.configured import listed, table
from worker.curve import daemon_keys, worker_keys
from worker.settings import loaded


def add_flags(parser: Parser) -> None:
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--check-config", action="store_true", help="say whether the settings can be used, and end")
    asked.add_argument("--print-config", action="store_true", help="show every setting and where it is from, and end")
    parser.add_argument("--json", action="store_true", help="with --print-config: as JSON")


def is_asked(options: argparse.Namespace) -> bool:
    """Raises Fatal where it is not to be told what is asked."""
    if options.json and not options.print_config:
        raise runtime.Fatal(runtime.EXIT_USAGE, "--json goes with --print-config")
    return bool(options.check_config or options.print_config)


def answer(options: argparse.Namespace, *, worker: bool, daemon: bool) -> int:
    """What was asked.  Raises BadSettings or Fatal where the settings can not be used by that program."""
    read = loaded(flags_of(options), os.environ)
    if options.print_config:
        print(json.dumps(listed(read), indent=2) if options.json else table(read))
        return runtime.EXIT_OK
    settings = read.settings
    if worker:
        worker_keys(settings.worker_url, settings.curve_dir)
        if settings.group:
            runtime.group_named(settings.group)
    if daemon:
        daemon_keys(settings.worker_url, settings.curve_dir)
    print(f"ok: {read.path or 'no file'}")
    return runtime.EXIT_OK
