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
from typing import Final, TypeVar

from worker import notify, runtime
from worker.configured import read_again
from worker.curve import worker_keys
from worker.health import Heart
from worker.logs import log_uncaught, start_logging
from worker.server import RETRY_SECONDS, AddressRefused, Server
from worker.settings import OF_WORKER, BadSettings, Settings, load, unheard
from worker.store import Store, StoreBusy, StoreRefused

T = TypeVar("T")


def main(arguments: Sequence[str] = ()) -> int:
    try:
        if arguments:
            raise runtime.Fatal(runtime.EXIT_USAGE, f"unknown argument {arguments[0]!r}; settings come from PERDURE_*")
        # The wish to read settings again waits from before their first reading until there is somebody to hear it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
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
    log = start_logging("worker", settings.log_level, settings.log_format)
    log_uncaught(log)
    for said in unheard(os.environ):
        log.warning("%s", said)
    notifier = notify.from_environment(os.environ)
    patiently = partial(_patiently, notifier=notifier, log=log)
    # What this process makes — database, socket, lock — is its user's alone.
    os.umask(0o077)
    state = Path(settings.state_dir)
    patiently(state, lambda: runtime.private_directory(state))
    run = Path(settings.runtime_dir)
    patiently(run, lambda: runtime.private_directory(run))
    patiently(settings.lock, lambda: runtime.lock_file(settings.lock, "set PERDURE_STATE_DIR to another directory"))
    if settings.worker_url.startswith("ipc://"):
        socket = Path(settings.worker_url.removeprefix("ipc://"))
        patiently(socket.parent, lambda: runtime.private_directory(socket.parent))
        # ZeroMQ would take the path from a worker that serves another state directory, without a word.
        lock = socket.with_suffix(".lock")
        patiently(lock, lambda: runtime.lock_file(lock, "set PERDURE_RUNTIME_DIR to another directory"))
        if settings.group:
            runtime.share(socket.parent, runtime.group_named(settings.group), 0o750)
    keys = worker_keys(settings.worker_url, settings.curve_dir)
    # Until there is something to finish, a signal ends the process at once.
    runtime.on_signals(lambda: sys.exit(runtime.EXIT_OK))
    try:
        store = patiently(settings.database, lambda: _opened(settings.database, notifier))
        heart = Heart(Path(settings.runtime_dir))

        def bound() -> None:
            _set_socket_mode(settings)
            log.info("ready at %s, database %s, schema %d", settings.worker_url, settings.database, store.schema)
            notifier.ready(server.status())

        def beat() -> None:
            heart.beat()
            notifier.pulse(server.status)

        server = Server(
            store,
            settings.worker_url,
            keys=keys,
            bound=bound,
            version=version("perdure"),
            boot=secrets.token_hex(8),
            log=log,
            beat=beat,
            ledger_days=settings.ledger_days,
            session_days=settings.session_days,
        )
        runtime.on_signals(server.stop)
        _on_reload(settings, server, notifier, log)
        try:
            server.run()
        except StoreRefused:
            store.abandon()
            raise
        notifier.stopping("moving the log into the database", within_seconds=CLOSING_SECONDS)
        store.close()
    except StoreRefused as error:
        raise runtime.Fatal(runtime.EXIT_CONFIGURATION, str(error)) from error
    except AddressRefused as error:
        status = runtime.EXIT_UNAVAILABLE if error.is_passing else runtime.EXIT_CONFIGURATION
        raise runtime.Fatal(status, str(error)) from error
    log.info("stopped")


def _opened(database: Path, notifier: notify.Notifier) -> Store:
    """The store, which may take long: a check reads all of it, a migration copies it first."""
    try:
        size = database.stat().st_size
    except OSError:
        size = 0
    notifier.busy(f"opening {database}", within_seconds=OPENING_SECONDS + size / OPENING_BYTES_PER_SECOND)
    return Store(database)


def _on_reload(settings: Settings, server: Server, notifier: notify.Notifier, log: Logger) -> None:
    """From now on a SIGHUP, also one that came before, has the settings read again, between two batches."""
    in_force = settings

    def reload() -> None:
        nonlocal in_force
        notifier.reloading()
        read = read_again(in_force, os.environ, OF_WORKER, log)
        if read is not None:
            start_logging("worker", read.log_level, read.log_format)
            limits = (read.ledger_days, read.session_days)
            if limits != (in_force.ledger_days, in_force.session_days):
                server.keep_ledger(*limits)
            in_force = read
        notifier.ready(server.status())

    signal.signal(signal.SIGHUP, lambda _number, _frame: server.soon(reload))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _set_socket_mode(settings: Settings) -> None:
    """Once the socket is there: whoever may write to it may speak to the worker."""
    if settings.worker_url.startswith("ipc://"):
        socket = Path(settings.worker_url.removeprefix("ipc://"))
        if settings.group:
            runtime.share(socket, runtime.group_named(settings.group), 0o660)
        else:
            socket.chmod(0o600)


def _patiently(what: Path, act: Callable[[], T], *, notifier: notify.Notifier, log: Logger) -> T:
    """Wait for a disk that is full or read-only now, rather than exit in a loop."""
    pause_seconds = RETRY_SECONDS[0]
    while True:
        try:
            return act()
        except (StoreBusy, runtime.NotNow) as error:
            log.error("%s can not be opened now (%s); trying again", what, error)
            notifier.busy(f"waiting: {what} can not be opened now ({error})", within_seconds=OPENING_SECONDS)
            time.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, RETRY_SECONDS[1])


OPENING_SECONDS: Final = 60.0
"""What a service manager is asked to wait for a start that goes on, beyond what the database's size explains."""
OPENING_BYTES_PER_SECOND: Final = 10_000_000
"""What is read and copied of a database in a second, on a disk that is slow and busy."""
CLOSING_SECONDS: Final = 60.0
"""The same for the end: the log is 64 MB, rarely more."""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
