"""The request daemon as a process: settings → loop → daemon → exit status."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from logging import Logger

import uvloop

from daemon.app import BackgroundFailed, Daemon, WritesLeft
from daemon.http_server import CannotListen
from worker import runtime
from worker.settings import BadSettings, Settings, is_loopback, load


def main(arguments: Sequence[str] = ()) -> int:
    try:
        if arguments:
            raise runtime.Fatal(runtime.EXIT_USAGE, f"unknown argument {arguments[0]!r}; settings come from PERDURE_*")
        # The wish to read settings again waits from before their first reading until there is somebody to hear it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        runtime.keep_memory_private()
        runtime.take_descriptors()
        settings = load({}, os.environ)
        runtime.die_with_parent()
        log = runtime.start_logging("daemon", settings.log_level)
        runtime.log_uncaught(log)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, log))
    except BadSettings as error:
        runtime.leave("perdure daemon", runtime.Fatal(runtime.EXIT_CONFIGURATION, str(error)))
    except (CannotListen, WritesLeft) as error:
        runtime.leave("perdure daemon", runtime.Fatal(runtime.EXIT_UNAVAILABLE, str(error)))
    except BackgroundFailed as error:
        runtime.leave("perdure daemon", runtime.Fatal(runtime.EXIT_INTERNAL, f"internal error: {error}"))
    except runtime.Fatal as fatal:
        runtime.leave("perdure daemon", fatal)
    except Exception as error:
        logging.getLogger("daemon").critical("stopping", exc_info=error)
        runtime.leave(
            "perdure daemon", runtime.Fatal(runtime.EXIT_INTERNAL, f"internal error: {runtime.place_of(error)}")
        )
    return runtime.EXIT_OK


async def _serve(settings: Settings, log: Logger) -> None:
    # A supervisor names its children, and gives several of them one listening socket.
    instance = os.environ.get("SUPERVISOR_PROCESS_NAME") or f"daemon@{settings.listen}"
    descriptor = os.environ.get("PERDURE_LISTEN_FD", "")
    listen_fd = int(descriptor) if descriptor else None
    if listen_fd is not None:
        _refuse_open_listener(listen_fd, settings)
    daemon = Daemon(settings, instance=instance, listen_fd=listen_fd, log=log)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    loop.add_signal_handler(signal.SIGHUP, _reload, daemon, log)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    await daemon.run()


def _refuse_open_listener(listen_fd: int, settings: Settings) -> None:
    """Where a supervisor listens for us, its address counts, not the one in our settings."""
    with socket.socket(fileno=os.dup(listen_fd)) as passed:
        host = str(passed.getsockname()[0])
    if not settings.token and not is_loopback(host):
        raise runtime.Fatal(
            runtime.EXIT_CONFIGURATION,
            f"the socket that was passed listens on {host}, which other machines reach; set PERDURE_TOKEN, or let it "
            "listen on 127.0.0.1",
        )


def _reload(daemon: Daemon, log: Logger) -> None:
    """Read the settings again, from where they came from; those in force stay if the new ones can not be used."""
    try:
        settings = load({}, os.environ)
    except BadSettings as error:
        log.error("settings stay as they were: %s", error)
    else:
        daemon.reload(settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
