"""How keep-alive stands, as the command line shows it to people.

One rule: objects of `daemon.views` in, text out; nothing is added up here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from daemon.columns import Column, Screen, Table, facts, many, money, plain, wrapped

SESSIONS_SHOWN: Final = 20
"""Of the sessions with the best figures; `--json` has all."""


def warm_page(shown: Mapping[str, Any], screen: Screen) -> str:
    """The switch, what was sent and what would have been, by session, and what stands against it."""
    total = shown["total"]
    lines = [
        ("Keep-alive", "on" if shown["switch"] == "on" else "off; `perdure warm --on` sends pings"),
        ("Since", shown["since"]),
        ("Sent", _line(total["sent"], "saved")),
        ("In shadow", _line(total["shadow"], "would have saved")),
        *(("By hand", f"{each['session_id']}: {each['setting']}") for each in shown["by_hand"]),
        *(("Latch", _latch(each)) for each in shown["latches"]),
        *([] if shown["latches_known"] else [("Latches", "not known: the worker does not answer")]),
    ]
    parts = [facts(lines, screen)]
    if shown["sessions"]:
        table = Table(_COLUMNS, screen.width, screen.paint)
        cells = [_cells(each) for each in shown["sessions"][:SESSIONS_SHOWN]]
        parts.append("\n".join([table.header, *map(table.line, cells)]))
        if len(shown["sessions"]) > SESSIONS_SHOWN:
            parts.append(f"and {len(shown['sessions']) - SESSIONS_SHOWN:,} more: `perdure warm --json`")
    if total["shadow"]["pings"]:
        parts.append("\n".join(wrapped(_SHADOW, screen.width)))
    return "\n\n".join(parts)


def _line(saving: Mapping[str, int], saved: str) -> str:
    if not saving["pings"]:
        return "nothing"
    count = f"{many(saving['pings'], 'ping')}, {many(saving['hits'], 'hit')}"
    figures = f"cost {money(saving['cost_nanousd'])}, {saved} {money(saving['saved_nanousd'])}"
    return f"{count}; {figures}: net {_signed(saving['net_nanousd'])}"


def _latch(latch: Mapping[str, Any]) -> str:
    until = (latch["until"] or "")[:16].replace("T", " ")
    return f"{latch['scope']} {plain(latch['name'])}: {latch['reason']}, until {until}; `perdure warm --reset` opens it"


def _cells(session: Mapping[str, Any]) -> list[str]:
    sent, shadow = session["sent"], session["shadow"]
    return [
        plain(session["session_id"]),
        plain(session["client"]),
        session["setting"] or "",
        *_figures(sent),
        *_figures(shadow),
    ]


def _figures(saving: Mapping[str, int]) -> list[str]:
    if not saving["pings"]:
        return ["", "", ""]
    return [f"{saving['pings']:,}", f"{saving['hits']:,}", _signed(saving["net_nanousd"])]


def _signed(nanousd: int) -> str:
    return f"-{money(-nanousd)}" if nanousd < 0 else money(nanousd)


_SHADOW: Final = "In shadow: where nothing was sent, as if every client had a key of its own and signed nothing."
_COLUMNS: Final = (
    Column("SESSION", 12, 32, "id"),
    Column("CLIENT", 11, 24),
    Column("SET", 4),
    Column("PINGS", 5, form="figure"),
    Column("HITS", 4, form="figure"),
    Column("NET", 10, form="figure"),
    Column("SHADOW", 6, form="figure"),
    Column("HITS", 4, form="figure"),
    Column("NET", 10, form="figure"),
)
