"""What the running programs say when they are asked: a daemon over HTTP, worker and supervisor over their sockets.

One rule: nobody is waited for longer than a person waits, and whoever does not answer is described, not complained
about.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import xmlrpc.client
from pathlib import Path
from typing import Any, Final

import msgspec
from supervisor.options import make_namespec
from supervisor.xmlrpc import SupervisorTransport

from daemon.errand import ask
from daemon.standing import DAEMON_FIELDS
from worker.curve import daemon_keys
from worker.protocol import Query
from worker.runtime import Fatal
from worker.settings import Settings
from worker.standing import Standing

READYZ_SECONDS: Final = 2.0
"""How long a daemon may take to say how it is; one that needs longer is not well."""
STATUS_SECONDS: Final = 1.5
"""How long it may take to say more: it asks the worker for a second."""
WORKER_SECONDS: Final = 2.0
"""How long the worker may take: a greeting and an answer, about 0.2 s.  Over tcp there is a handshake as well."""
SUPERVISOR_SECONDS: Final = 2.0
"""How long supervisord may take to tell of its children."""
ANSWER_BYTES_MAX: Final = 1024 * 1024
"""More than any answer of ours; whoever else listens there may send without end."""


class WorkerSays(threading.Thread):
    """Asks the worker, while others are asked.  A daemon thread: Ctrl-C does not wait for it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="asking", daemon=True)
        self._settings = settings
        self.standing: Standing | None = None
        self.unreachable = ""
        """Why it did not answer, where that is known."""

    def run(self) -> None:
        url = self._settings.worker_url
        self.unreachable = closed_socket(url)
        if self.unreachable:
            return
        try:
            said = ask(Query(what="status"), url, daemon_keys(url, self._settings.curve_dir), WORKER_SECONDS)
            self.standing = msgspec.json.decode(said, type=Standing) if said is not None else None
        except Fatal as fatal:
            self.unreachable = str(fatal)
        except (msgspec.DecodeError, OSError) as error:
            self.unreachable = f"its answer can not be read ({type(error).__name__}); is it of another version?"

    def finish(self) -> None:
        self.join(WORKER_SECONDS + 1.0)


def closed_socket(worker_url: str) -> str:
    """Why nobody can be reached at the worker's address; empty where somebody listens, or it is not known."""
    if not worker_url.startswith("ipc://"):
        return ""
    path = worker_url.removeprefix("ipc://")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(WORKER_SECONDS)
        try:
            probe.connect(path)
        except FileNotFoundError:
            return f"there is no socket at {path}; is PERDURE_RUNTIME_DIR the worker's?"
        except ConnectionRefusedError:
            return f"nobody listens at {path}"
        except PermissionError:
            return f"{path} is not ours to use: run this as the worker's user (uid {os.geteuid()} is not)"
        except OSError as error:
            return f"{path}: {error.strerror or error}"
    return ""


def readyz(settings: Settings) -> dict[str, Any]:
    """What a daemon says of itself; "down" where none answers."""
    try:
        said = _get(settings, "/readyz", READYZ_SECONDS)
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return {"status": "down", "checks": {"daemon": f"does not answer ({why:.100})"}}
    if not isinstance(said, dict) or not isinstance(said.get("checks"), dict) or "status" not in said:
        return {"status": "down", "checks": {"daemon": "not there: another program listens on its address"}}
    return said


def answering_daemon(settings: Settings) -> dict[str, Any] | None:
    """The daemon that answers, as it shows itself in /api/status; None where it does not, or is too old to."""
    try:
        said = _get(settings, "/api/status", STATUS_SECONDS)
    except (OSError, http.client.HTTPException):
        return None
    daemon = said.get("daemon") if isinstance(said, dict) else None
    return daemon if isinstance(daemon, dict) and daemon.keys() >= DAEMON_FIELDS else None


def supervised(path: Path) -> dict[str, str]:
    """The states of a supervisor's processes, by the names that it takes.  Raises what sockets, HTTP and XML raise.

    Its transport knows no patience but the one for all sockets."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SUPERVISOR_SECONDS)
    try:
        transport: Any = SupervisorTransport(None, None, f"unix://{path}")
        told: Any = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor.getAllProcessInfo()
        return {make_namespec(str(each["group"]), str(each["name"])): str(each["statename"]) for each in told}
    finally:
        socket.setdefaulttimeout(before)


def _get(settings: Settings, path: str, patience_seconds: float) -> Any:
    """The JSON at a path; None for what is none."""
    connection = http.client.HTTPConnection(settings.listen_host, settings.listen_port, timeout=patience_seconds)
    try:
        connection.request("GET", path, headers={"x-perdure-token": settings.token, "Connection": "close"})
        return json.loads(connection.getresponse().read(ANSWER_BYTES_MAX))
    except (ValueError, RecursionError):
        return None
    finally:
        connection.close()
