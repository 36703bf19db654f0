"""The persistence worker as a process: settings → lock → store → server → exit status."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from logging import Logger
from pathlib import Path

from worker import runtime
from worker.curve import worker_keys
from worker.health import Heart
from worker.server import RETRY_SECONDS, AddressRefused, Server
from worker.settings import BadSettings, Settings, load
from worker.store import Store, StoreBusy, StoreRefused


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
        runtime.leave("perdure worker", runtime.Fatal(runtime.EXIT_INTERNAL, f"internal error: {error!r:.300}"))
    return runtime.EXIT_OK


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT.  Raises Fatal with the exit status and the remedy."""
    runtime.die_with_parent()
    # Nothing that a worker was told can change while it runs: who asks for that means the daemons.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    log = runtime.start_logging("worker", settings.log_level)
    # What this process makes — database, socket, lock — is its user's alone.
    os.umask(0o077)
    runtime.private_directory(Path(settings.state_dir))
    runtime.private_directory(Path(settings.runtime_dir))
    runtime.lock_file(settings.lock, "set PERDURE_STATE_DIR to another directory")
    if settings.worker_url.startswith("ipc://"):
        socket = Path(settings.worker_url.removeprefix("ipc://"))
        runtime.private_directory(socket.parent)
        # ZeroMQ would take the path from a worker that serves another state directory, without a word.
        runtime.lock_file(socket.with_suffix(".lock"), "set PERDURE_RUNTIME_DIR to another directory")
    keys = worker_keys(settings.worker_url, settings.curve_dir)
    # Until there is something to finish, a signal ends the process at once.
    runtime.on_signals(lambda: sys.exit(runtime.EXIT_OK))
    try:
        store = _open(settings.database, log)
        server = Server(
            store,
            settings.worker_url,
            keys=keys,
            version=version("perdure"),
            boot=secrets.token_hex(8),
            log=log,
            beat=Heart(Path(settings.runtime_dir)).beat,
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
        status = runtime.EXIT_UNAVAILABLE if error.is_taken else runtime.EXIT_CONFIGURATION
        raise runtime.Fatal(status, str(error)) from error
    log.info("stopped")


def _open(path: Path, log: Logger) -> Store:
    """Open the store; wait for a disk that is full or read-only now, rather than exit in a loop."""
    pause_seconds = RETRY_SECONDS[0]
    while True:
        try:
            return Store(path)
        except StoreBusy as error:
            log.error("%s can not be opened now (%s); trying again", path, error)
            time.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, RETRY_SECONDS[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
