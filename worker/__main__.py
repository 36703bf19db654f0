"""The persistence worker as a process: settings → lock → store → server → exit status."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from logging import Logger
from pathlib import Path
from typing import TypeVar

from worker import runtime
from worker.curve import worker_keys
from worker.health import Heart
from worker.server import RETRY_SECONDS, AddressRefused, Server
from worker.settings import BadSettings, Settings, load
from worker.store import Store, StoreBusy, StoreRefused

T = TypeVar("T")


def main(arguments: Sequence[str] = ()) -> int:
    try:
        if arguments:
            raise runtime.Fatal(runtime.EXIT_USAGE, f"unknown argument {arguments[0]!r}; settings come from PERDURE_*")
        serve(load({}, os.environ))
    except BadSettings as error:
        runtime.leave("perdure worker", runtime.Fatal(runtime.EXIT_CONFIGURATION, str(error)))
    except runtime.Fatal as fatal:
        runtime.leave("perdure worker", fatal)
    except Exception as error:
        logging.getLogger("worker").debug("internal error", exc_info=error)
        runtime.leave(
            "perdure worker", runtime.Fatal(runtime.EXIT_INTERNAL, f"internal error: {runtime.place_of(error)}")
        )
    return runtime.EXIT_OK


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT.  Raises Fatal with the exit status and the remedy."""
    runtime.keep_memory_private()
    runtime.take_descriptors()
    runtime.die_with_parent()
    # Nothing that a worker was told can change while it runs: who asks for that means the daemons.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    log = runtime.start_logging("worker", settings.log_level)
    runtime.log_uncaught(log)
    # What this process makes — database, socket, lock — is its user's alone.
    os.umask(0o077)
    state = Path(settings.state_dir)
    _patiently(state, lambda: runtime.private_directory(state), log)
    run = Path(settings.runtime_dir)
    _patiently(run, lambda: runtime.private_directory(run), log)
    _patiently(
        settings.lock, lambda: runtime.lock_file(settings.lock, "set PERDURE_STATE_DIR to another directory"), log
    )
    if settings.worker_url.startswith("ipc://"):
        socket = Path(settings.worker_url.removeprefix("ipc://"))
        _patiently(socket.parent, lambda: runtime.private_directory(socket.parent), log)
        # ZeroMQ would take the path from a worker that serves another state directory, without a word.
        lock = socket.with_suffix(".lock")
        _patiently(lock, lambda: runtime.lock_file(lock, "set PERDURE_RUNTIME_DIR to another directory"), log)
        if settings.group:
            runtime.share(socket.parent, runtime.group_named(settings.group), 0o750)
    keys = worker_keys(settings.worker_url, settings.curve_dir)
    # Until there is something to finish, a signal ends the process at once.
    runtime.on_signals(lambda: sys.exit(runtime.EXIT_OK))
    try:
        store = _patiently(settings.database, lambda: Store(settings.database), log)
        server = Server(
            store,
            settings.worker_url,
            keys=keys,
            bound=partial(_set_socket_mode, settings),
            version=version("perdure"),
            boot=secrets.token_hex(8),
            log=log,
            beat=Heart(Path(settings.runtime_dir)).beat,
            ledger_days=settings.ledger_days,
        )
        runtime.on_signals(server.stop)
        log.info("ready at %s, database %s, schema %d", settings.worker_url, settings.database, store.schema)
        try:
            server.run()
        except StoreRefused:
            store.abandon()
            raise
        store.close()
    except StoreRefused as error:
        raise runtime.Fatal(runtime.EXIT_CONFIGURATION, str(error)) from error
    except AddressRefused as error:
        status = runtime.EXIT_UNAVAILABLE if error.is_passing else runtime.EXIT_CONFIGURATION
        raise runtime.Fatal(status, str(error)) from error
    log.info("stopped")


def _set_socket_mode(settings: Settings) -> None:
    """Once the socket is there: whoever may write to it may speak to the worker."""
    if settings.worker_url.startswith("ipc://"):
        socket = Path(settings.worker_url.removeprefix("ipc://"))
        if settings.group:
            runtime.share(socket, runtime.group_named(settings.group), 0o660)
        else:
            socket.chmod(0o600)


def _patiently(what: Path, act: Callable[[], T], log: Logger) -> T:
    """Wait for a disk that is full or read-only now, rather than exit in a loop."""
    pause_seconds = RETRY_SECONDS[0]
    while True:
        try:
            return act()
        except (StoreBusy, runtime.NotNow) as error:
            log.error("%s can not be opened now (%s); trying again", what, error)
            time.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, RETRY_SECONDS[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
