"""The request daemon as a process: settings → loop → daemon → exit status."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from logging import Logger

import uvloop

from daemon.app import FLUSH_SECONDS, IDLE_DRAIN_SECONDS, BackgroundFailed, Daemon, Phase, WritesLeft
from daemon.http_server import CannotListen
from daemon.passed import passed_listener, refuse_open_listener
from worker import notify, runtime
from worker.configured import read_again
from worker.logs import fields, log_uncaught, start_logging
from worker.settings import NOT_OF_DAEMON, BadSettings, Settings, load, unheard


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
        log = start_logging("daemon", settings.log_level, settings.log_format)
        log_uncaught(log)
        for said in unheard(os.environ):
            log.warning("%s", said)
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
    # A supervisor names its children, which may all have one address, and may listen for them.
    named = os.environ.get("PERDURE_INSTANCE") or os.environ.get("SUPERVISOR_PROCESS_NAME")
    instance = named or f"daemon@{settings.listen}"
    listen_fd = passed_listener(os.environ, token=settings.token)
    notifier = notify.from_environment(os.environ)
    daemon = Daemon(settings, instance=instance, listen_fd=listen_fd, log=log, notifier=notifier)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    loop.add_signal_handler(signal.SIGHUP, _reload, daemon, listen_fd, notifier, log)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    await daemon.run()


def _reload(daemon: Daemon, listen_fd: int | None, notifier: notify.Notifier, log: Logger) -> None:
    """Read the settings again, from where they came from; those in force stay if the new ones can not be used."""

    def check(settings: Settings) -> None:
        if listen_fd is not None:
            refuse_open_listener(listen_fd, token=settings.token)

    # Who still starts is not ready because of this, and who drains will not be again.
    is_running = daemon.phase is Phase.RUNNING
    if is_running:
        notifier.reloading()
    names = frozenset(Settings.__struct_fields__) - NOT_OF_DAEMON
    settings = read_again(daemon.settings, os.environ, names, log, check)
    if settings is not None:
        daemon.reload(settings)
        _warn_of_impatience(settings, log)
    if is_running:
        notifier.ready(daemon.status())


def _warn_of_impatience(settings: Settings, log: Logger) -> None:
    """`perdure up` told supervisord at its start how long to wait for us."""
    patience_seconds = float(os.environ.get("PERDURE_STOP_SECONDS") or "inf")
    if settings.drain_seconds + IDLE_DRAIN_SECONDS + FLUSH_SECONDS > patience_seconds:
        said = fields(drain_seconds=settings.drain_seconds, killed_after_seconds=patience_seconds)
        log.warning("needs a restart of `perdure up` to wait for so long: drain_seconds", extra=said)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
