"""What the command line shows to people: lines, tables and pages of the objects that programs get as JSON.

One rule: text in, text out.  What clients sent is shown without its control characters, and nothing is shown that
`--json` does not hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

SHORT_ID_CHARACTERS: Final = 12
"""Of 32 hexadecimal digits: two among a million sessions share so many once in 500 installations."""


def status_page(report: Mapping[str, Any]) -> str:
    database, worker = report["database"], report["worker"]
    lines = [("perdure", f"{report['status']} at http://{report['listen']}")]
    lines += [(f"  {name}", text) for name, text in report["checks"].items()]
    lines.append(("worker", f"pid {worker['pid']}" if worker["running"] else "none has the state directory"))
    lines.append(("database", database["path"]))
    if "error" in database:
        lines.append(("", database["error"]))
    else:
        turns = f"{database['turns']} turns ({database['interrupted']} interrupted)"
        lines.append(("", f"{database['sessions']} sessions, {turns}, cost {_cost(database['cost_nanousd'])}"))
        sizes = f"{_short(database['bytes'])}B + {_short(database['wal_bytes'])}B log"
        lines.append(("", f"schema {database['schema']}, {sizes}"))
    return _aligned(lines)


def session_line(shown: Mapping[str, Any], now: float) -> str:
    return _SESSION_LINE.format(
        _plain(shown["session_id"])[:SHORT_ID_CHARACTERS],
        _plain(shown["client"])[:12],
        _plain(shown["model"])[:19],
        shown["turns"],
        _short(shown["input_tokens"] + shown["cache_read_tokens"] + shown["cache_write_tokens"]),
        _short(shown["output_tokens"]),
        _cost(shown["cost_nanousd"]),
        _ago(shown["last_turn_at"], now),
    ).rstrip()


def session_page(shown: Mapping[str, Any]) -> str:
    lines = [
        ("Session", shown["session_id"]),
        ("Named by", _naming(shown)),
        ("Because", _because(shown)),
        ("Aliases", ", ".join(shown["aliases"]) or None),
        *(("Changed", change_line(change)) for change in shown["changes"]),
        ("Started by", shown["parent_session_id"]),
        ("Forked from", shown["forked_from"]),
        *(("Sub-agent", session_id) for session_id in shown["sub_agents"]),
        *(("Fork", session_id) for session_id in shown["forks"]),
        ("Client", shown["client"]),
        ("Account", _account(shown)),
        ("Model", shown["model"]),
        ("Messages", shown["message_count"]),
        ("First seen", shown["first_seen_at"]),
        ("Last turn", shown["last_turn_at"]),
        ("Turns", f"{shown['turns']}, {shown['interrupted']} of them interrupted"),
        *((name, f"{shown[field]:,} tokens") for name, field in _TOKENS),
        ("Cost", f"{_cost(shown['cost_nanousd'])}; rows without a price: {shown['unpriced_turns']}"),
        *_tree_lines(shown),
        ("Cache TTL", shown["resolved_conversation_ttl"]),
        *_gradient_lines(shown["gradient"]),
        *(("Warning", warning) for warning in shown.get("warnings", [])),
    ]
    rows = [_row_line(row) for row in shown["newest_rows"]]
    header = _ROW_LINE.format("TURN", "STARTED (UTC)", "KIND", "STATUS", "IN", "OUT", "COST", "WHY")
    return "\n".join([_aligned(lines), "", header, *rows])


def changed_page(shown: Mapping[str, Any]) -> str:
    """What came of a correction."""
    done, number = _did(shown), shown["change"]
    if shown["verb"] == "undo":
        left = f"; {_turns(shown['stayed'])} made since stay in {shown['other_id']}" if shown["stayed"] else ""
        return _plain(f"change {number}: {done}{left}")
    return _plain(f"change {number}: {done}; `perdure session undo {number}` takes it back")


def change_line(shown: Mapping[str, Any]) -> str:
    """One correction as the log tells it."""
    at = (shown["at"] or "")[:19].replace("T", " ")
    undone = f"; undone by change {shown['undone_by']}" if shown["undone_by"] else ""
    return _plain(f"change {shown['change']}, {at}: {_did(shown)}{undone}")


def _did(shown: Mapping[str, Any]) -> str:
    moved, session_id, other_id = _turns(shown["moved"]), shown["session_id"], shown["other_id"]
    if shown["verb"] == "merge":
        return f"merged {session_id} into {other_id}, {moved}"
    if shown["verb"] == "split":
        return f"split {moved} off {session_id} into {other_id}"
    return f"took back change {shown['undoes']}, {moved} between {session_id} and {other_id}"


def _turns(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _naming(shown: Mapping[str, Any]) -> str:
    if shown["header_session_id"]:
        return f"{shown['header_name']}: {shown['header_session_id']}"
    return f"fingerprint {shown['fingerprint']}" if shown["fingerprint"] else "its first messages"


def _account(shown: Mapping[str, Any]) -> str | None:
    alias = shown["account_alias"]
    return f"{alias} ({shown['account']})" if alias else shown["account"]


def _tree_lines(shown: Mapping[str, Any]) -> list[tuple[str, object]]:
    if not shown["sub_agents"]:
        return []
    return [("  in all", f"{_cost(shown['tree_cost_nanousd'])} with its sub-agents")]


def _row_line(row: Mapping[str, Any]) -> str:
    kinds = [row[field] for name, field in _TOKENS if field != "output_tokens"]
    return _ROW_LINE.format(
        _plain(row["event_id"])[:SHORT_ID_CHARACTERS],
        (row["started_at"] or "")[:19].replace("T", " "),
        row["kind"],
        row["status"] if row["settled"] else "running",
        "?" if None in kinds else _short(sum(kinds)),
        "?" if row["output_tokens"] is None else _short(row["output_tokens"]),
        _cost(row["cost_nanousd"]),
        _plain(_because(row)),
    ).rstrip()


def _because(shown: Mapping[str, Any]) -> str:
    """Why it was given this session, and how sure that is."""
    return f"{shown['reason']} ({shown['confidence']})" if shown["confidence"] else shown["reason"]


def _aligned(lines: Iterable[tuple[str, object]]) -> str:
    return "\n".join(f"{name:<12}{_plain(text)}" for name, text in lines)


def _gradient_lines(gradient: Mapping[str, Any] | None) -> list[tuple[str, object]]:
    """What is learned of the prompt cache; a negative figure means that there is none yet."""
    if gradient is None:
        return []
    rate, interval = gradient["bust_rate_ema"], gradient["inter_bust_interval_ema"]
    return [
        ("Last prompt", f"{gradient['last_known_input']:,} tokens, layer {gradient['last_layer']}"),
        ("Context cap", f"{gradient['dynamic_context_cap']:,} tokens"),
        ("Cache busts", f"{rate:.0%} of turns" if rate >= 0 else None),
        ("  apart", f"{interval:.0f} s" if interval >= 0 else None),
        ("  last", gradient["last_bust_at"]),
    ]


def _plain(text: object) -> str:
    """What clients send must not command the terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text)) if text not in (None, "") else "-"


def _short(count: int) -> str:
    """Four characters at most, and the unit's letter."""
    value = float(count)
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.1f}{unit}" if unit and value < 99.5 else f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:.0f}T"


def _cost(nanousd: int | None) -> str:
    if nanousd is None:
        return "unknown"
    dollars = nanousd / 1e9
    return f"${dollars:.2f}" if dollars >= 10 else f"${dollars:.4f}"


def _ago(moment: str | None, now: float) -> str:
    """How long ago, in the largest whole unit."""
    if moment is None:
        return "never"
    seconds = max(0, int(now - datetime.fromisoformat(moment).timestamp()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


_TOKENS: Final = (
    ("Input", "input_tokens"),
    ("Cache read", "cache_read_tokens"),
    ("Cache write", "cache_write_tokens"),
    ("Output", "output_tokens"),
)
_SESSION_LINE: Final = "{:<12} {:<12} {:<19} {:>5} {:>6} {:>6} {:>8}  {}"
_ROW_LINE: Final = "{:<12} {:<19} {:<6} {:<11} {:>6} {:>6} {:>8}  {}"
SESSIONS_HEADER: Final = _SESSION_LINE.format("SESSION", "CLIENT", "MODEL", "TURNS", "IN", "OUT", "COST", "LAST")
