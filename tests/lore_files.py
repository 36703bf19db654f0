"""Databases as the Lore gateway makes them, by schema version: made of the facts of its published schema.

One rule: only what an import could look at is made, with the columns, types and defaults that each version has.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

VERSIONS: Final = (23, 24, 26, 36, 41, 46, 60, 61, 68, 73, 75)
"""Those with which `session_state`, or what is told of messages, became another one."""

BIRTH: Final = "session_id TEXT PRIMARY KEY, force_min_layer INTEGER NOT NULL DEFAULT 0, updated_at INTEGER NOT NULL"
NUMBERS: Final = "INTEGER NOT NULL DEFAULT 0"
AMOUNT: Final = "REAL NOT NULL DEFAULT 0"
COLUMNS: Final[Mapping[int, Mapping[str, str]]] = {
    18: {
        **dict.fromkeys(("conversation_cost", "worker_cost", "warmup_savings", "ttl_savings", "batch_savings"), AMOUNT),
        **dict.fromkeys(("conversation_turns", "cache_read_tokens", "cache_write_tokens"), NUMBERS),
        **dict.fromkeys(("warmup_hits", "ttl_hits"), NUMBERS),
    },
    21: {"avoided_compactions": NUMBERS, "avoided_compaction_cost": AMOUNT},
    23: {
        **dict.fromkeys(("last_curated_at", "message_count", "turns_since_curation"), NUMBERS),
        "ltm_cache_text": "TEXT",
        "ltm_cache_tokens": "INTEGER",
        "ltm_pin_text": "TEXT",
        "ltm_pin_tokens": "INTEGER",
        "consecutive_text_only_turns": NUMBERS,
    },
    24: {
        "fingerprint": "TEXT NOT NULL DEFAULT ''",
        "header_session_id": "TEXT",
        "header_name": "TEXT",
        "resolved_conversation_ttl": "TEXT NOT NULL DEFAULT '5m'",
        "warmup_state": "TEXT",
        "dynamic_context_cap": AMOUNT,
        **dict.fromkeys(("bust_rate_ema", "inter_bust_interval_ema"), "REAL NOT NULL DEFAULT -1"),
        **dict.fromkeys(("last_layer", "last_known_input", "last_turn_at", "last_bust_at"), NUMBERS),
    },
    26: {"parent_session_id": "TEXT", "is_subagent": NUMBERS},
    36: {"project_path": "TEXT", "project_path_provisional": "INTEGER NOT NULL DEFAULT 1"},
    37: {"compaction_anomaly_pending": NUMBERS},
    39: {"ltm_pin_keys": "TEXT"},
    41: {"dedup_decisions": "TEXT"},
    44: {"last_known_message_count": NUMBERS},
    45: {"stable_ltm_text": "TEXT", "stable_ltm_tokens": "INTEGER"},
    46: {"recall_store": "TEXT"},
    61: {"warmup_cost": AMOUNT},
    68: {"worker_breakdown": "TEXT"},
    73: {"input_tokens": NUMBERS, "output_tokens": NUMBERS},
}
ROLLUP_VERSION: Final = 60

CLAUDE: Final = "x-claude-code-session-id"
NOW: Final = 1_750_000_000_000
SAID: Final = "what was said, and is nobody's business"
"""Stands where Lore keeps texts: no import may ever show it."""


def lore_database(path: Path, sessions: Sequence[Mapping[str, Any]], *, version: int = 75, wal: bool = False) -> Path:
    """A database of that schema.  `sessions`: columns by name; those that the schema has not are left out."""
    path.unlink(missing_ok=True)
    db = sqlite3.connect(path)
    if wal:
        db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
    db.execute("INSERT INTO schema_version VALUES (?)", (version,))
    db.execute(f"CREATE TABLE session_state ({BIRTH})")
    known = {"session_id", "updated_at"}
    for step, columns in COLUMNS.items():
        if step <= version:
            for name, form in columns.items():
                db.execute(f"ALTER TABLE session_state ADD COLUMN {name} {form}")
                known.add(name)
    _messages(db, version)
    for session in sessions:
        values = {"updated_at": NOW, **{name: value for name, value in session.items() if name in known}}
        marks = ", ".join("?" * len(values))
        db.execute(f"INSERT INTO session_state ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))
    db.commit()
    db.close()
    return path


def session(lore_id: str = "ses_1", **changes: Any) -> dict[str, Any]:
    """A session of Claude Code that was used for a while."""
    whole: dict[str, Any] = {
        "session_id": lore_id,
        "updated_at": NOW - 1_000,
        "conversation_cost": 1.25,
        "worker_cost": 0.5,
        "warmup_cost": 0.25,
        "conversation_turns": 12,
        "cache_read_tokens": 90_000,
        "cache_write_tokens": 8_000,
        "input_tokens": 700,
        "output_tokens": 600,
        "message_count": 24,
        "consecutive_text_only_turns": 2,
        "ltm_cache_text": SAID,
        "fingerprint": "0a1b2c",
        "header_name": CLAUDE,
        "header_session_id": f"minted-{lore_id}",
        "resolved_conversation_ttl": "1h",
        "warmup_state": json.dumps(WARMUP),
        "dynamic_context_cap": 150_000.4,
        "bust_rate_ema": 0.35,
        "inter_bust_interval_ema": 120_000.0,
        "last_layer": 1,
        "last_known_input": 80_000,
        "last_turn_at": NOW - 5_000,
        "last_bust_at": NOW - 60_000,
        "project_path": f"/home/{SAID}",
    }
    return whole | changes


WARMUP: Final = {
    "lastWarmupAt": NOW - 200_000,
    "warmupCount": 3,
    "totalWarmups": 5,
    "warmupHits": 1,
    "disabled": False,
    "forceKeepWarm": True,
}


def _messages(db: sqlite3.Connection, version: int) -> None:
    """One answer of `ses_1`, which tells the model and the beginning."""
    db.execute(
        "CREATE TABLE temporal_messages (id TEXT PRIMARY KEY, project_id TEXT NOT NULL, session_id TEXT NOT NULL, "
        "role TEXT NOT NULL, content TEXT NOT NULL, tokens INTEGER DEFAULT 0, distilled INTEGER DEFAULT 0, "
        "created_at INTEGER NOT NULL, metadata TEXT)"
    )
    told = json.dumps({"modelID": "claude-sonnet-4-6", "providerID": "anthropic", "path": SAID})
    for number, metadata in enumerate((told, "{not json")):
        db.execute(
            "INSERT INTO temporal_messages (id, project_id, session_id, role, content, created_at, metadata) "
            "VALUES (?, 'p', 'ses_1', 'assistant', ?, ?, ?)",
            (f"m{number}", SAID, NOW - 86_400_000 + number, metadata),
        )
    if version >= ROLLUP_VERSION:
        db.execute(
            "CREATE TABLE session_rollup (project_id TEXT NOT NULL, session_id TEXT NOT NULL, "
            "message_count INTEGER NOT NULL DEFAULT 0, token_sum INTEGER NOT NULL DEFAULT 0, first_message_at INTEGER, "
            "last_message_at INTEGER, first_assistant_metadata TEXT, dirty INTEGER NOT NULL DEFAULT 0, "
            "PRIMARY KEY (project_id, session_id))"
        )
        db.execute("INSERT INTO session_rollup VALUES ('p', 'ses_1', 2, 9, ?, ?, ?, 0)", (NOW - 86_400_000, NOW, told))
