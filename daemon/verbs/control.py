"""The verb `ctl`: supervisorctl for what runs here, with our names for exit statuses.

One rule: whatever directory it is given in, it speaks to the supervisor of this runtime directory and to no other; also
where the configuration can not be used any more, since what runs can then still be stopped.

Theory.  supervisorctl reads our configuration, since by itself it would take the first that it finds.  Its exit
statuses are those of init scripts, where 1, 3, 4 and 7 mean one thing or the other; here whatever could not be done, or
does not run, is *not now* (75), and what was not understood is *usage* (2).
"""

from __future__ import annotations

import argparse
import http.client
import os
import sys
import xmlrpc.client
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from supervisor import supervisorctl

from daemon.verbs import background
from daemon.verbs.asking import supervised
from daemon.verbs.parsing import Verbs, add_verb, nearest
from daemon.verbs.running import supervised_environment, supervisord_conf
from worker import runtime
from worker.runtime import Fatal
from worker.settings import Loaded

ACTIONS: Final = frozenset(
    {
        *("status", "start", "stop", "restart", "signal", "pid", "tail", "maintail", "clear", "fg", "help"),
        *("reload", "reread", "update", "add", "remove", "avail", "shutdown", "open", "version", "quit", "exit"),
    }
)
"""What supervisorctl does."""
OF_PROCESSES: Final = frozenset({"status", "start", "stop", "restart", "signal", "pid", "tail", "clear", "fg"})
"""What is done to processes that are named."""
OF_ONE_PROCESS: Final = frozenset({"tail", "fg", "pid"})
NEEDING_A_NAME: Final = OF_PROCESSES - {"status", "pid"}


def add(verbs: Verbs) -> None:
    does = "supervisorctl for what runs here"
    made = add_verb(
        verbs, "ctl", "perdure ctl restart worker", does, ("state_dir", "runtime_dir"), act=ctl, without_file=True
    )
    made.epilog = (
        "Exit status: 0 done; 2 not understood, or no such process; 75 not done, or (of status) something does not run."
    )
    made.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="VERB …",
        help="status, restart NAME, stop NAME, start NAME, tail NAME; `daemon:*` means all daemons",
    )


def ctl(read: Loaded, options: argparse.Namespace) -> int:
    """Have supervisorctl do it."""
    settings = read.settings
    if background.supervisor_pid(settings) is None:
        raise Fatal(
            runtime.EXIT_UNAVAILABLE, f"nothing runs in {settings.runtime_dir}; `perdure up` or `perdure run` starts it"
        )
    _refuse_unknown(options.words, Path(settings.runtime_dir))
    os.environ.update(supervised_environment(read, options))
    try:
        supervisorctl.main(["-c", str(supervisord_conf()), *options.words])
    except SystemExit as ended:
        return _STATUSES.get(int(ended.code or 0), runtime.EXIT_UNAVAILABLE)
    except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
        # Where it is our own output that nobody takes (`| head`), or that has no room, this tells.
        sys.stdout.flush()
        raise Fatal(runtime.EXIT_UNAVAILABLE, f"the supervisor has not done it: {error!s:.200}; try again") from None
    return runtime.EXIT_OK


def _refuse_unknown(words: Sequence[str], runtime_dir: Path) -> None:
    """Raises Fatal for what supervisorctl would not understand either, and would say less of."""
    if not words:
        return  # A prompt of its own.
    action, *rest = words
    if action.startswith("-"):
        raise Fatal(runtime.EXIT_USAGE, f"{action!r} is not known here; `perdure ctl --help` says more")
    if action not in ACTIONS:
        guess = nearest(action, ACTIONS) or "; `perdure ctl help` lists what there is"
        raise Fatal(runtime.EXIT_USAGE, f"{action!r} is nothing that supervisorctl does{guess}")
    if action not in OF_PROCESSES:
        return
    names = [word for word in rest if not word.startswith("-")]
    names = names[1:] if action == "signal" else names[:1] if action in ("tail", "fg") else names
    there = _names(runtime_dir)
    if not names and action in NEEDING_A_NAME:
        raise Fatal(runtime.EXIT_USAGE, f"{action} which? there are {', '.join(there)}, daemon:* and all")
    for name in names:
        if there and not _is_known(name, there):
            raise Fatal(runtime.EXIT_USAGE, f"no process is called {name!r}{_guess(name, there)}")
        if action in OF_ONE_PROCESS and name.endswith((":", ":*")):
            raise Fatal(runtime.EXIT_USAGE, f"{action} takes one process, and {name} are several; `perdure ctl status`")


def _names(runtime_dir: Path) -> list[str]:
    """What runs here, or could; none where the supervisor does not say."""
    try:
        return sorted(supervised(runtime_dir / "sv.sock"))
    except (OSError, http.client.HTTPException, xmlrpc.client.Error, ValueError):
        return []


def _is_known(name: str, there: Collection[str]) -> bool:
    group, _, process = name.partition(":")
    if process in ("", "*") and ":" in name:
        return any(each.partition(":")[0] == group for each in there)
    return name == "all" or name in there or (group == process and group in there)


def _guess(name: str, there: Sequence[str]) -> str:
    """The right name: most of those that are wrong are a daemon's, without its group."""
    number = name.rpartition(":")[2].removeprefix("daemon").strip("-s")
    if f"daemon:daemon-{number}" in there:
        return f"; did you mean 'daemon:daemon-{number}'?"
    if name in ("daemon", "daemons"):
        return "; did you mean 'daemon:*', all of them?"
    return nearest(name, there) or f"; there are {', '.join(there)}, daemon:* and all"


_STATUSES: Final = {0: runtime.EXIT_OK, 2: runtime.EXIT_USAGE}
"""Of supervisorctl's own."""
