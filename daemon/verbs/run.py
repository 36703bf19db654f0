"""The verbs for a gateway in the background: `run` a command through it, `down` to stop it.

One rule: once the gateway is there, this process *becomes* the command.  Nobody stands between the terminal and the
agent: its signals, its job control, its window and its exit status are its own by construction, and there is nothing
that could pass them on wrongly or die before it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from functools import partial
from typing import Final, NoReturn

from daemon.agents import AGENTS, Gateway, Told, told
from daemon.verbs import background
from daemon.verbs.parsing import SETTINGS, Verbs, add_verb
from daemon.verbs.running import url_here
from daemon.verbs.screen import say
from worker import runtime
from worker.runtime import Fatal
from worker.settings import Loaded, Settings

EXIT_NOT_RUNNABLE: Final = 126
EXIT_NOT_FOUND: Final = 127
"""Both as shells say it."""


def add(verbs: Verbs) -> None:
    verb = partial(add_verb, verbs)
    known = ", ".join(AGENTS)
    runs = verb("run", "perdure run -- claude", f"run a command through perdure ({known}, any)", SETTINGS, act=run)
    runs.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND …", help="what to run, as you would")
    places = ("state_dir", "runtime_dir")
    does = "stop what `perdure up` or `perdure run` started"
    verb("down", "perdure down", does, places, act=down, without_file=True)


def run(settings: Settings, options: argparse.Namespace) -> NoReturn:
    """Become a command that speaks to the gateway, which is started if there is none."""
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not words:
        raise Fatal(runtime.EXIT_USAGE, "no command to run; for example: perdure run -- claude")
    program = _found(words[0])
    readiness = background.ensure(settings, options)
    if readiness.status == "degraded":
        say(f"degraded ({readiness}): turns are answered, `perdure status` says more")
    gateway = Gateway(url=url_here(settings), token=settings.token, anthropic_url=settings.anthropic_url)
    tell = told(words[0], tuple(words[1:]), gateway, os.environ)
    for note in tell.notes:
        say(note)
    _become_command(program, words, tell)


def down(read: Loaded, _options: argparse.Namespace) -> int:
    """Stop the gateway.  Exit status 0 also if there was none: what was asked for is so."""
    settings = read.settings
    print("stopped" if background.stop(settings) else f"nothing runs in {settings.runtime_dir}")
    return runtime.EXIT_OK


def _found(name: str) -> str:
    """The command's file, looked for before anything is started.  Raises Fatal."""
    if (found := shutil.which(name)) is not None:
        return found
    path = name if os.sep in name else shutil.which(name, mode=os.F_OK)
    if path and os.path.exists(path):
        raise Fatal(EXIT_NOT_RUNNABLE, f"{path}: can not be run; check its mode")
    raise Fatal(EXIT_NOT_FOUND, f"{name}: no such command; install it, or give its path")


def _become_command(program: str, words: list[str], tell: Told) -> NoReturn:
    # Python ignores these two for itself, and what is ignored stays so in the next program: `agent | head` would go on.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    try:
        os.execve(program, [words[0], *tell.arguments, *words[1:]], {**os.environ, **tell.variables})  # noqa: S606
    except OSError as error:
        raise Fatal(EXIT_NOT_RUNNABLE, f"{program}: {error.strerror}") from None
