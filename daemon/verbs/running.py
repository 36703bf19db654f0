"""The verbs that run something: `up`, `daemon`, `worker`.

One rule: they check what can be checked early, put every setting into the environment, and then *become* the program,
so that the pid a terminal or a service manager knows is the program's own.
"""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Final, NoReturn

from daemon.verbs import configuring
from daemon.verbs.parsing import SETTINGS, Verbs, add_verb, flags_of
from daemon.verbs.screen import say
from worker import runtime
from worker.runtime import Fatal
from worker.settings import IPC_PATH_BYTES_MAX, Loaded, Settings, environment, loaded, unheard

STOP_MARGIN_SECONDS: Final = 20
"""What a daemon needs to stop beyond its longest stream: idle connections, the last flush, and some."""
SUPERVISOR_SOCKET_BYTES: Final = len("/sv.sock.4194304")
"""The supervisor's socket as it is named while it is bound, with the longest pid."""


def add(verbs: Verbs) -> None:
    does = "run worker and daemons in the foreground"
    configuring.add_flags(
        add_verb(verbs, "up", "perdure up --daemons 2", does, SETTINGS, act=up, refused=configuring.refuse)
    )
    for program in ("daemon", "worker"):
        does = f"run one {program} in the foreground, for a supervisor of your own"
        configuring.add_flags(
            add_verb(
                verbs,
                program,
                f"perdure {program}",
                does,
                SETTINGS,
                act=run_program,
                refused=configuring.refuse,
                program=program,
            )
        )


def up(settings: Settings, options: argparse.Namespace) -> int:
    """Become a supervisor of one worker and its daemons, in the foreground."""
    if configuring.is_asked(options):
        return configuring.answer(options, worker=True, daemon=True, check=_refuse_unsupervisable)
    module, environ = supervision(settings, options)
    print(_greeting(settings), flush=True)
    return become(module, environ)


def supervision(settings: Settings, options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The supervisor to become, and its environment.  Raises Fatal if it is seen now that it can not work."""
    for said in unheard(os.environ):
        say(said)
    state, run = Path(settings.state_dir), Path(settings.runtime_dir)
    _refuse_unsupervisable(settings)
    # Logs name models, sessions and directories: they are their user's alone.
    os.umask(0o077)
    for directory in (state, state / "log", run):
        runtime.private_directory(directory)
    # Held for a moment, to say now what the worker would only say in its log.
    os.close(runtime.lock_file(settings.lock, "set PERDURE_STATE_DIR to another directory"))
    _refuse_taken_port(settings)
    # Without a user named, a supervisor that is root warns that it is: it was told nothing about whom to become.
    user = ["-u", "root"] if os.geteuid() == 0 else []
    environ = supervised_environment(loaded(flags_of(options), os.environ), options)
    return ["daemon.supervise", "-n", "-c", str(supervisord_conf()), *user], environ


def run_program(_settings: Settings, options: argparse.Namespace) -> int:
    """Become the daemon or the worker."""
    if configuring.is_asked(options):
        return configuring.answer(options, worker=options.program == "worker", daemon=options.program == "daemon")
    return become([options.program], _environment(loaded(flags_of(options), os.environ), options))


def become(module: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Replace this process.  -P: the directory it was started in must not be able to replace a module."""
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-P", "-m", *module], environ)  # noqa: S606 - no shell is meant


def _environment(read: Loaded, options: argparse.Namespace) -> dict[str, str]:
    """This process's own, with the settings in it that are not read again; tables and the others stay in the file."""
    environ = {**os.environ, **environment(read)}
    if options.config:
        environ["PERDURE_CONFIG"] = options.config
    return environ


def supervised_environment(read: Loaded, options: argparse.Namespace) -> dict[str, str]:
    """What supervisord.conf is read with."""
    return {
        **_environment(read, options),
        "PERDURE_PYTHON": sys.executable,
        "PERDURE_STOP_SECONDS": str(int(read.settings.drain_seconds) + STOP_MARGIN_SECONDS),
    }


def supervisord_conf() -> Path:
    """In a package it is among the worker's files, in a checkout at the top."""
    packaged = Path(str(resources.files("worker"))) / "supervisord.conf"
    return packaged if packaged.exists() else packaged.parent.parent / "supervisord.conf"


def _refuse_unsupervisable(settings: Settings) -> None:
    """What the programs themselves could do, but supervisord can not."""
    if ":" in settings.listen_host:
        remedy = "set PERDURE_LISTEN to 127.0.0.1:7373, or start `perdure worker` and `perdure daemon` yourself"
        raise Fatal(
            runtime.EXIT_CONFIGURATION, f"{settings.listen}: supervisord hands on no IPv6 socket to daemons; {remedy}"
        )
    if settings.listen_port == 0:
        raise Fatal(runtime.EXIT_CONFIGURATION, f"{settings.listen}: nobody would know the port; give one")
    for name, path in (("STATE", settings.state_dir), ("RUNTIME", settings.runtime_dir)):
        if "%" in path:
            remedy = f"set PERDURE_{name}_DIR to another directory"
            raise Fatal(runtime.EXIT_CONFIGURATION, f"{path}: supervisord takes % for a sign of its own; {remedy}")
    if len(os.fsencode(settings.runtime_dir)) + SUPERVISOR_SOCKET_BYTES > IPC_PATH_BYTES_MAX:
        raise Fatal(
            runtime.EXIT_CONFIGURATION,
            f"{settings.runtime_dir}: too long for a socket in it; set PERDURE_RUNTIME_DIR to a shorter directory",
        )


def _refuse_taken_port(settings: Settings) -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # Connections of an earlier run that wait out their time do not make a port taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.listen_host, settings.listen_port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Fatal(
                runtime.EXIT_UNAVAILABLE,
                f"{settings.listen}: another program listens there (`perdure status` tells whether it is perdure); "
                "stop it, or set PERDURE_LISTEN to another port",
            ) from None
        raise Fatal(
            runtime.EXIT_CONFIGURATION, f"{settings.listen}: {error.strerror}; set PERDURE_LISTEN to an address of ours"
        ) from None


def url_here(settings: Settings) -> str:
    """Where programs of this machine find the gateway."""
    anywhere = settings.listen_host == "0.0.0.0"  # noqa: S104 - compared, not listened on
    return f"http://127.0.0.1:{settings.listen_port}" if anywhere else f"http://{settings.listen}"


def _greeting(settings: Settings) -> str:
    url = url_here(settings)
    daemons = "1 daemon" if settings.daemons == 1 else f"{settings.daemons} daemons"
    lines = [
        ("Claude Code", f"ANTHROPIC_BASE_URL={url} claude"),
        ("OpenAI SDKs", f"OPENAI_BASE_URL={url}/v1"),
        *([("Token", "clients send it as x-perdure-token")] if settings.token else []),
        ("State", f"{settings.database}"),
        ("Logs", f"{settings.state_dir}/log/"),
        ("Look", f"{sys.argv[0]} status | sessions | show ID"),
        ("Stop", "Ctrl-C"),
    ]
    shown = "\n".join(f"  {name:<13}{text}" for name, text in lines)
    return f"perdure {version('perdure')} on {settings.listen} (one worker, {daemons})\n\n{shown}\n"
