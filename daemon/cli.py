"""The command `perdure`: start it, look at it, correct it.

One rule: what is shown is read, never changed; what is changed, the worker changes; and a failure is one line that says
what to do, with an exit status of the contract: nobody sees a traceback because nothing runs or a pipe was closed.

Theory.  The verbs are in `daemon.verbs`, a file per purpose, in the order in which help lists them; each adds its
command line and says who does it.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from daemon.verbs import (
    control,
    correcting,
    costs,
    doctor,
    importing,
    keeping,
    keys,
    looking,
    run,
    running,
    units,
    warm,
)
from daemon.verbs.parsing import Parser, flags_of
from daemon.verbs.screen import say
from worker import runtime
from worker.runtime import Fatal
from worker.settings import BadSettings, Loaded, loaded, loaded_places
from worker.store import StoreBusy, StoreRefused

EXIT_INTERRUPTED: Final = 130
"""Ctrl-C during a verb that looks: what shells give for SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model's or client's name may have characters that this terminal's encoding does not.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _run(_options(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has all it wanted (`| head`).  Python flushes once more at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return runtime.EXIT_OK
    except Fatal as fatal:
        runtime.leave("perdure", fatal)
    except OSError as error:
        if error.errno not in runtime.PASSING:
            raise
        # Python flushes once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        said = f"what is to be said can not be written: {error.strerror}"
        runtime.leave("perdure", Fatal(runtime.EXIT_UNAVAILABLE, said))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    if not arguments:
        # Whoever types the name alone wants to know what there is; a script that forgot its verb must not go on.
        parser.print_help()
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    try:
        status = _act(options)
    except (BadSettings, StoreRefused) as error:
        raise Fatal(runtime.EXIT_CONFIGURATION, str(error)) from error
    except StoreBusy as error:
        raise Fatal(runtime.EXIT_UNAVAILABLE, f"the database can not be read now ({error}); try again") from error
    except PermissionError as error:
        where = error.filename or "its socket"
        said = f"{where}: {error.strerror}; it belongs to another user, or check owner and mode: run this as its owner"
        raise Fatal(runtime.EXIT_CONFIGURATION, said) from error
    return status


def _act(options: argparse.Namespace) -> int:
    """Have the verb done; where settings can not be used, as far as it can be done without them."""
    try:
        read = loaded(flags_of(options), os.environ)
    except BadSettings as error:
        if getattr(options, "without_file", False):
            return int(options.act(_places_alone(error, options), options))
        if hasattr(options, "refused"):
            return int(options.refused(error, options))
        raise
    return int(options.act(read if getattr(options, "without_file", False) else read.settings, options))


def _places_alone(error: BadSettings, options: argparse.Namespace) -> Loaded:
    """Where what runs is to be found, for who only wants to reach it: it was started with settings that were good."""
    read = loaded_places(flags_of(options), os.environ)
    say(f"{error}; looking in {read.settings.runtime_dir} all the same")
    return read


def _parser() -> Parser:
    parser = Parser(
        prog="perdure", description="An LLM gateway for coding agents whose sessions outlive its processes."
    )
    parser.example = "Example:  perdure up      then, elsewhere:  perdure run -- claude"
    parser.add_argument("--version", action="version", version=f"perdure {version('perdure')}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for purpose in (running, run, control, looking, costs, doctor, keys, keeping, importing, correcting, warm, units):
        purpose.add(verbs)
    return parser
