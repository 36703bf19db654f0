"""The targets by name, each opened when its turn comes."""

from __future__ import annotations

from typing import Final

from tests.fuzz import (
    answers,
    bodies,
    frames,
    http_requests,
    relay,
    rows,
    settings_files,
    stored,
    worker_loop,
    writes,
)
from tests.fuzz.guided import Opened

TARGETS: Final[dict[str, Opened]] = {
    "frames": frames.opened,
    "worker": worker_loop.opened,
    "writes": writes.opened,
    "http": http_requests.opened,
    "relay": relay.opened,
    "answers": answers.opened,
    "settings": settings_files.opened,
    "rows": rows.opened,
    "stored": stored.opened,
    "bodies": bodies.opened,
}
