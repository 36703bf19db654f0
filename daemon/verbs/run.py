"""The verbs for a gateway in the background: `run` a command through it, `down` to stop it, `ctl` to control it.

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
from daemon.verbs.running import become, supervised_environment, supervisord_conf, url_here
from worker import runtime
from worker.runtime import Fatal
from worker.settings import Settings

EXIT_NOT_RUNNABLE: Final = 126
EXIT_NOT_FOUND: Final = 127
"""Both as shells say it."""


def add(verbs: Verbs) -> None:
    verb = partial(add_verb, verbs)
    known = ", ".join(AGENTS)
    runs = verb("run", "perdure run -- claude", f"run a command through perdure ({known}, any)", SETTINGS, act=run)
    runs.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND …", help="what to run, as you would")
    places = ("state_dir", "runtime_dir")
    verb("down", "perdure down", "stop what `perdure up` or `perdure run` started", places, act=down)
    control = verb("ctl", "perdure ctl restart worker", "supervisorctl for what runs here", places, act=ctl)
    control.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="VERB …",
        help="status, restart NAME, stop NAME, start NAME, tail NAME",
    )


def run(settings: Settings, options: argparse.Namespace) -> NoReturn:
    """Become a command that speaks to the gateway, which is started if there is none."""
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not words:
        raise Fatal(runtime.EXIT_USAGE, "no command to run; for example: perdure run -- claude")
    program = _found(words[0])
    readiness = background.ensure(settings, options)
    if readiness.status == "degraded":
        _say(f"degraded ({readiness}): turns are answered, `perdure status` says more")
    gateway = Gateway(url=url_here(settings), token=settings.token, anthropic_url=settings.anthropic_url)
    tell = told(words[0], tuple(words[1:]), gateway, os.environ)
    for note in tell.notes:
        _say(note)
    _become_command(program, words, tell)


def down(settings: Settings, _options: argparse.Namespace) -> int:
    """Stop the gateway.  Exit status 0 also if there was none: what was asked for is so."""
    print("stopped" if background.stop(settings) else f"nothing runs in {settings.runtime_dir}")
    return runtime.EXIT_OK


def ctl(settings: Settings, options: argparse.Namespace) -> NoReturn:
    """Become supervisorctl.  It reads our configuration: by itself it would take the first it finds, from the directory
    it happens to be in."""
    if background.supervisor_pid(settings) is None:
        raise Fatal(
            runtime.EXIT_UNAVAILABLE, f"nothing runs in {settings.runtime_dir}; `perdure up` or `perdure run` starts it"
        )
    become(
        ["supervisor.supervisorctl", "-c", str(supervisord_conf()), *options.words],
        supervised_environment(settings, options),
    )


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


def _say(text: str) -> None:
    print(f"perdure: {text}", file=sys.stderr, flush=True)
