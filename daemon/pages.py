"""What the command line shows to people: lines, tables and pages of the objects that programs get as JSON.

One rule: text in, text out.  What clients sent is shown without its control characters, and nothing is shown that
`--json` does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from daemon.columns import Column, Screen, Table, Tone, ago, facts, many, money, plain, short


def sessions_table(screen: Screen) -> Table:
    return Table(_SESSION_COLUMNS, screen.width, screen.paint)


def session_cells(shown: Mapping[str, Any], now: float) -> list[str]:
    """A session, for `sessions_table`."""
    return [
        plain(shown["session_id"]),
        plain(shown["client"]),
        plain(shown["model"]),
        f"{shown['turns']:,}",
        short(shown["input_tokens"] + shown["cache_read_tokens"] + shown["cache_write_tokens"]),
        short(shown["output_tokens"]),
        money(shown["cost_nanousd"]),
        ago(shown["last_turn_at"], now),
    ]


def session_page(shown: Mapping[str, Any], screen: Screen) -> str:
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
        ("Cost", f"{money(shown['cost_nanousd'])}; rows without a price: {shown['unpriced_turns']}"),
        *_tree_lines(shown),
        ("Cache TTL", shown["resolved_conversation_ttl"]),
        *_keep_alive_lines(shown["keep_alive"], shown["session_id"]),
        *_gradient_lines(shown["gradient"]),
        *(("Warning", warning) for warning in shown.get("warnings", [])),
    ]
    table = Table(_ROW_COLUMNS, screen.width, screen.paint)
    rows = [table.line(_row_cells(row), tones=status_tones(row, _STATUS)) for row in shown["newest_rows"]]
    return "\n".join([facts(lines, screen), "", table.header, *rows])


def changed_page(shown: Mapping[str, Any]) -> str:
    """What came of a correction."""
    done, number = _did(shown), shown["change"]
    if shown["verb"] == "undo":
        stay = "stays" if shown["stayed"] == 1 else "stay"
        left = f"; {_rows(shown['stayed'])} made since {stay} in {shown['other_id']}" if shown["stayed"] else ""
        return plain(f"change {number}: {done}{left}")
    return plain(f"change {number}: {done}; `perdure session undo {number}` takes it back")


def forgotten_page(shown: Mapping[str, Any]) -> str:
    """What came of forgetting."""
    others = shown["sub_agents"]
    whole = f"{shown['session_id']} and {many(others, 'sub-agent')}" if others else shown["session_id"]
    count = shown["rows_kept"]
    nothing = f"{'they' if others else 'it'} had no rows"
    stay = "stays" if count == 1 else "stay"
    kept = f"{_rows(count)} {stay} in the sums, under no name" if count else nothing
    lines = [f"change {shown['change']}: forgot {whole}; {kept}"]
    ended = shown["no_longer_undoable"]
    if ended:
        lines.append(f"{', '.join(f'change {each}' for each in ended)} can not be undone any more")
    lines.append("backups that were made before still hold it: delete those that should not")
    return "\n".join(map(plain, lines))


def change_line(shown: Mapping[str, Any]) -> str:
    """One correction as the log tells it."""
    at = (shown["at"] or "")[:19].replace("T", " ")
    undone = f"; undone by change {shown['undone_by']}" if shown["undone_by"] else ""
    return plain(f"change {shown['change']}, {at}: {_did(shown)}{undone}")


def switched_line(shown: Mapping[str, Any]) -> str:
    """What was said of keep-alive."""
    whose = f"of session {shown['session_id']}" if shown["session_id"] else "of all sessions"
    if shown["verb"] == "warm reset":
        settings = f", {many(shown['moved'], 'setting')} by hand among them" if shown["moved"] else ""
        return f"what stood against keep-alive {whose} is over{settings}"
    return f"keep-alive {whose} is {shown['verb'].removeprefix('warm ')}"


def changes_table(screen: Screen) -> Table:
    return Table(_CHANGE_COLUMNS, screen.width, screen.paint)


def change_cells(shown: Mapping[str, Any]) -> list[str]:
    """A correction, for `changes_table`."""
    return [
        str(shown["change"]),
        (shown["at"] or "never")[:16].replace("T", " "),
        f"{shown['verb']} {shown['undoes']}" if shown["undoes"] else shown["verb"],
        f"{shown['moved']:,}",
        plain(shown["session_id"]),
        plain(shown["other_id"]),
        str(shown["undone_by"] or ""),
    ]


def _did(shown: Mapping[str, Any]) -> str:
    moved, session_id, other_id = _rows(shown["moved"]), shown["session_id"], shown["other_id"]
    if shown["verb"] == "merge":
        return f"merged {session_id} into {other_id}, {moved}"
    if shown["verb"] == "split":
        return f"split {moved} off {session_id} into {other_id}"
    if shown["verb"] == "adopt":
        return f"adopted {many(shown['moved'], 'session')} of {session_id}"
    if shown["verb"].startswith("warm"):
        return switched_line(shown)
    if shown["verb"] == "forget":
        return f"forgot {session_id}, {moved} kept in the sums"
    return f"took back change {shown['undoes']}, {moved} between {session_id} and {other_id}"


def _rows(count: int) -> str:
    return many(count, "row")


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
    return [("  in all", f"{money(shown['tree_cost_nanousd'])} with its sub-agents")]


def status_tones(row: Mapping[str, Any], column: int) -> dict[int, Tone]:
    """Of a row's status, which stands in that column: what went wrong is seen among what went well."""
    if row["settled"] and row["status"] != "complete":
        return {column: "bad" if row["status"] == "error" else "poor"}
    return {}


def _row_cells(row: Mapping[str, Any]) -> list[str]:
    kinds = [row[field] for name, field in _TOKENS if field != "output_tokens"]
    return [
        plain(row["event_id"]),
        (row["started_at"] or "never")[:16].replace("T", " "),
        row["kind"],
        row["status"] if row["settled"] else "open",
        "?" if None in kinds else short(sum(kinds)),
        "?" if row["output_tokens"] is None else short(row["output_tokens"]),
        money(row["cost_nanousd"]),
        plain(_because(row)),
    ]


def _because(shown: Mapping[str, Any]) -> str:
    """Why it was given this session, and how sure that is."""
    return f"{shown['reason']} ({shown['confidence']})" if shown["confidence"] else shown["reason"]


def _keep_alive_lines(shown: Mapping[str, Any], session_id: str) -> list[tuple[str, object]]:
    """What an operator said, and what stands against it: of this session alone."""
    lines: list[tuple[str, object]] = []
    if shown["disabled"]:
        lines.append(("Keep-alive", f"off: {shown['disabled']}"))
    elif shown["forced"]:
        lines.append(("Keep-alive", "on by hand, whatever the evidence says"))
    if shown["breaker_until"]:
        said = f"pings to {shown['breaker_of']} failed: none before {shown['breaker_until']}"
        lines.append(("  breaker", f"{said}; `perdure warm --reset {session_id}` closes it"))
    return lines


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


_TOKENS: Final = (
    ("Input", "input_tokens"),
    ("Cache read", "cache_read_tokens"),
    ("Cache write", "cache_write_tokens"),
    ("Output", "output_tokens"),
)
_SESSION_COLUMNS: Final = (
    # Of 32 hexadecimal digits: two among a million sessions share so many once in 500 installations.
    Column("SESSION", 12, 32, "id"),
    Column("CLIENT", 11, 24),
    Column("MODEL", 21, 40),
    Column("TURNS", 6, form="figure"),
    Column("IN", 5, form="figure"),
    Column("OUT", 5, form="figure"),
    Column("COST", 9, form="figure"),
    Column("LAST", 4),
)
_STATUS: Final = 3
_ROW_COLUMNS: Final = (
    Column("TURN", 8, 12, "id"),
    Column("STARTED (UTC)", 16),
    Column("KIND", 6),
    Column("STATUS", 11),
    Column("IN", 5, form="figure"),
    Column("OUT", 5, form="figure"),
    Column("COST", 9, form="figure"),
    Column("WHY", 13, 100),
)
_CHANGE_COLUMNS: Final = (
    Column("CHANGE", 6, form="figure"),
    Column("AT (UTC)", 16),
    Column("WHAT", 10),
    Column("ROWS", 6, form="figure"),
    Column("FROM", 12, 32, "id"),
    Column("TO", 12, 32, "id"),
    Column("UNDONE BY", 9, form="figure"),
)
