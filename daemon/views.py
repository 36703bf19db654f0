"""What people see of sessions and of their cost: the objects of the command line's `--json` and of `/api`.

One rule: a shown state is the snapshot with the rows since folded in, so that it is as new as the last finished turn,
whatever the tick.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Final

from msgspec import structs

from daemon import state as states
from daemon.keepalive import breaker_until
from daemon.savings import Saving, Told, total_of
from daemon.state import EMPTY, SessionState
from worker.protocol import Row, Switch, Why
from worker.records import Account, Change, Group, Record


def session_object(record: Record, account_aliases: Mapping[str, str]) -> dict[str, Any]:
    """One session, with the fields the contract names.  `account_aliases`: the operator's names for accounts."""
    session, sums = record.session, record.sums
    state, warnings = _state(record)
    cost = sums.cost_nanousd if sums.priced else None
    shown: dict[str, Any] = {
        "session_id": session.session_id,
        "parent_session_id": session.parent_session_id,
        "forked_from": session.forked_from,
        "client": session.client or None,
        "account": session.account or None,
        "account_alias": account_aliases.get(session.account),
        "header_name": session.header_name,
        "header_session_id": session.header_session_id,
        "fingerprint": session.fingerprint,
        "model": session.model or None,
        "message_count": session.message_count,
        "first_seen_at": iso(session.first_seen_at),
        "last_turn_at": iso(session.last_seen_at) if sums.turns else None,
        "turns": sums.turns,
        "interrupted": sums.interrupted,
        "input_tokens": sums.input_tokens,
        "cache_read_tokens": sums.cache_read_tokens,
        "cache_write_tokens": sums.cache_write_tokens,
        "output_tokens": sums.output_tokens,
        "cost_nanousd": cost,
        "unpriced_turns": sums.unpriced,
        "tree_cost_nanousd": record.tree.cost_nanousd if record.tree.priced else None,
        "resolved_conversation_ttl": state.warming.ttl,
        "warmup": _warmup(state),
        "gradient": _gradient(state),
    }
    if warnings:
        shown["warnings"] = list(warnings)
    return shown


def account_object(account: Account, account_aliases: Mapping[str, str]) -> dict[str, Any]:
    """One session in full."""
    shown = session_object(account.record, account_aliases)
    shown |= _why(account.record.session.why)
    shown["aliases"] = account.aliases
    shown["sub_agents"] = account.children
    shown["forks"] = account.forks
    shown["changes"] = [change_object(change) for change in account.changes]
    shown["keep_alive"] = _keep_alive(account.record, account.warm_reset_at)
    shown["epoch"] = account.record.session.epoch
    shown["owner"] = account.record.session.owner or None
    shown["snapshot_generation"] = account.record.session.snapshot.generation if account.record.session.snapshot else 0
    shown["keys"] = [{"kind": kind, "name": name, "value": value} for kind, name, value in account.keys]
    shown["newest_rows"] = [row_object(row) for row in account.newest]
    return shown


def savings_object(switch: Switch, told: Sequence[Told], since: str) -> dict[str, Any]:
    """What keeping caches warm has cost and saved from a day on, and what it would have where nothing was sent."""
    sent, shadow = total_of(told)
    settings = {each.session_id: each.setting for each in switch.sessions}
    return {
        **switch_object(switch),
        "since": since,
        "total": {"sent": _saving(sent), "shadow": _saving(shadow)},
        "sessions": [
            {
                "session_id": each.session_id,
                "client": each.client or None,
                "setting": settings.get(each.session_id) or None,
                "sent": _saving(each.sent),
                "shadow": _saving(each.shadow),
            }
            for each in told
        ],
    }


def _saving(saving: Saving) -> dict[str, int]:
    return {**structs.asdict(saving), "net_nanousd": saving.net_nanousd}


def _keep_alive(record: Record, reset_at: int) -> dict[str, Any]:
    """What an operator said of it, and what stands against it; `reset_at`: when that was over of all sessions."""
    session, warming = record.session, _state(record)[0].warming
    until = breaker_until(warming, warming.ping_place, max(reset_at, session.warm_reset_at))
    return {
        "setting": session.warm or None,
        "reset_at": iso(session.warm_reset_at),
        "forced": session.warm == "on" or (not session.warm and warming.forced),
        "disabled": "by hand" if session.warm == "off" else None if session.warm else warming.disabled,
        "breaker_until": iso(until),
        "breaker_of": warming.ping_place or None,
    }


def change_object(change: Change) -> dict[str, Any]:
    """A correction by an operator."""
    shown = {name: getattr(change, name) for name in Change.__struct_fields__}
    return {"change": shown.pop("number"), **shown, "at": iso(change.at)}


def switch_object(switch: Switch) -> dict[str, Any]:
    """Whether caches are kept warm: of all, of the sessions that are set by hand, and what stands against it."""
    return {
        "switch": "on" if switch.is_on else "off",
        "reset_at": iso(switch.reset_at),
        "by_hand": [
            {"session_id": each.session_id, "setting": each.setting, "reset_at": iso(each.reset_at)}
            for each in switch.sessions
        ],
        "latches": [
            {"scope": each.scope, "name": each.name, "reason": each.reason, "until": iso(each.until)}
            for each in switch.latches
        ],
    }


def costs_object(groups: Iterable[Group], account_aliases: Mapping[str, str]) -> dict[str, Any]:
    """Sums over the ledger: over all of it, and by what its rows have in common.

    `turns` are rows of every kind here, side calls and pings too: every list adds up to the total, to the token and to
    the nano-dollar, and `by_kind` tells them apart.
    """
    shown: dict[str, Any] = {"total": {}, **{f"by_{by}": [] for by in COSTS_BY}}
    for group in groups:
        figures = _figures(group)
        if group.by == "total":
            shown["total"] = figures
        elif group.by == "account":
            alias = account_aliases.get(group.name)
            shown["by_account"].append({"account": group.name or None, "account_alias": alias, **figures})
        else:
            shown[f"by_{group.by}"].append({group.by: group.name or None, **figures})
    return shown


def _figures(group: Group) -> dict[str, Any]:
    sums = group.sums
    return {
        "turns": sums.turns,
        "interrupted": sums.interrupted,
        "input_tokens": sums.input_tokens,
        "cache_read_tokens": sums.cache_read_tokens,
        "cache_write_tokens": sums.cache_write_tokens,
        "output_tokens": sums.output_tokens,
        "cost_nanousd": sums.cost_nanousd if sums.priced else None,
        "unpriced_turns": sums.unpriced,
    }


def ledger_object(row: Row, account_aliases: Mapping[str, str]) -> dict[str, Any]:
    """A row of the ledger by itself: whose it is, and what stands in it."""
    return {
        "session_id": row.session_id,
        **row_object(row),
        "client": row.client or None,
        "account": row.account or None,
        "account_alias": account_aliases.get(row.account),
    }


def row_object(row: Row) -> dict[str, Any]:
    usage = row.usage
    return {
        "event_id": row.event_id,
        "kind": row.kind,
        "status": row.status,
        "settled": row.is_settled,
        "started_at": iso(row.started_at),
        "ended_at": iso(row.ended_at),
        "provider": row.provider,
        "protocol": row.protocol,
        "model": row.model or None,
        "http_status": row.http_status or None,
        "input_tokens": usage.input_tokens if usage else None,
        "cache_read_tokens": usage.cache_read_tokens if usage else None,
        "cache_write_tokens": usage.cache_write_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "cost_nanousd": row.cost_nanousd,
        **_why(row.why),
    }


def _why(why: Why) -> dict[str, Any]:
    return {"reason": why.reason, "origin": why.origin or None, "confidence": why.confidence or None}


def _state(record: Record) -> tuple[SessionState, tuple[str, ...]]:
    snapshot = record.session.snapshot
    if snapshot is None:
        return states.fold(EMPTY, record.rows), ()
    restored = states.decode(snapshot)
    state = states.rebuild(restored, record.rows)
    # A damaged group is folded from all rows when its session is next claimed; half of them would show a lie.
    return (
        structs.replace(
            state,
            gradient=state.gradient if restored.gradient else EMPTY.gradient,
            warming=state.warming if restored.warming else EMPTY.warming,
        ),
        restored.warnings,
    )


def _warmup(state: SessionState) -> dict[str, Any] | None:
    if state.warming == EMPTY.warming:
        return None
    shown = structs.asdict(state.warming)
    del shown["ttl"]  # It stands beside, as `resolved_conversation_ttl`.
    return shown


def _gradient(state: SessionState) -> dict[str, Any] | None:
    if not state.gradient.last_turn_at:
        return None
    shown = structs.asdict(state.gradient)
    shown["last_turn_at"] = iso(state.gradient.last_turn_at)
    shown["last_bust_at"] = iso(state.gradient.last_bust_at)
    return shown


def is_day(text: str) -> bool:
    """Whether it is a day as they are named here, YYYY-MM-DD."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def iso(milliseconds: int) -> str | None:
    """ISO 8601 UTC with milliseconds; None for 0, which means never."""
    if milliseconds <= 0:
        return None
    seconds = min(milliseconds / 1000, _LAST_SECOND)
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


COSTS_BY: Final = ("day", "model", "client", "account", "provider", "kind")
"""What costs are added up by, in the order in which they are shown."""
_LAST_SECOND = 253_402_300_799
"""The end of the year 9999, where datetime ends."""
