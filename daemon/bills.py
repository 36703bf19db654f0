"""What it cost, as the command line shows it to people: sums by what rows have in common, and the rows themselves.

One rule: objects of `daemon.views` in, text out; nothing is added up here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from daemon.columns import Column, Screen, Table, Tone, many, money, plain, short
from daemon.pages import status_tones

DAYS_SHOWN: Final = 7
ENTRIES_SHOWN: Final = 10
"""Of each list, where all of them are shown."""
SHOWN_BY: Final = ("day", "model", "client", "account")
"""The lists that are shown to whoever asks for none."""


def costs_page(shown: Mapping[str, Any], *, since: str, by: str, screen: Screen) -> str:
    """Sums over the ledger: one list whole, or the beginnings of the usual ones."""
    parts = [_list(f"TOTAL, SINCE {since}" if since else "TOTAL", [("all of it", shown["total"])], screen)]
    for name in (by,) if by else SHOWN_BY:
        entries = [(_name(entry, name), entry) for entry in shown[f"by_{name}"]]
        if name == "day":
            entries.reverse()
        parts.append(_list(f"BY {name.upper()}", entries, screen, 0 if by else _most(name), f"--by {name}"))
    if shown["total"]["unpriced_turns"]:
        without = many(shown["total"]["unpriced_turns"], "request is", "requests are")
        parts.append(f"{without} in no cost: no price of the model, or no usage, is known.")
    return "\n\n".join(parts)


def rows_table(screen: Screen, *, with_session: bool) -> Table:
    columns = [column for column in _ROW_COLUMNS if with_session or column.title != "SESSION"]
    return Table(columns, screen.width, screen.paint)


def row_cells(row: Mapping[str, Any], *, with_session: bool) -> list[str]:
    """A row of the ledger, for `rows_table`."""
    kinds = [row[name] for name in ("input_tokens", "cache_read_tokens", "cache_write_tokens")]
    shown = [
        (row["started_at"] or "never")[:16].replace("T", " "),
        plain(row["session_id"])[:32],
        row["kind"],
        plain(row["model"]),
        row["status"] if row["settled"] else "open",
        "?" if None in kinds else short(sum(kinds)),
        "?" if row["output_tokens"] is None else short(row["output_tokens"]),
        money(row["cost_nanousd"]),
    ]
    return shown if with_session else [shown[0], *shown[2:]]


def row_tones(row: Mapping[str, Any], *, with_session: bool) -> dict[int, Tone]:
    """What went wrong is seen among what went well."""
    titles = [column.title for column in _ROW_COLUMNS if with_session or column.title != "SESSION"]
    return status_tones(row, titles.index("STATUS"))


def rolled_line(rolled: Mapping[str, Any]) -> str:
    """What a list of rows leaves out, to the token and to the nano-dollar: rows and this are what `costs` shows."""
    what = many(rolled["turns"], "request is", "requests are")
    figures = [name for name in rolled if name.endswith("_tokens") or name == "cost_nanousd"]
    told = " ".join(f"{name}={rolled[name]}" for name in figures if rolled[name] is not None)
    return f"{what} in the sums and no row here (removed by age, or imported): {told}"


def _list(
    title: str, entries: Sequence[tuple[str, Mapping[str, Any]]], screen: Screen, most: int = 0, remedy: str = ""
) -> str:
    table = Table([Column(title, 24, 44), *_FIGURES], screen.width, screen.paint)
    shown = entries[:most] if most else entries
    lines = [table.line([name, *_figures(entry)]) for name, entry in shown]
    if len(shown) < len(entries):
        lines.append(f"and {len(entries) - len(shown):,} more: `perdure costs {remedy}`")
    return "\n".join([table.header, *lines] if lines else [table.header, "nothing yet"])


def _figures(entry: Mapping[str, Any]) -> list[str]:
    tokens = [entry[f"{kind}_tokens"] for kind in ("input", "cache_read", "cache_write", "output")]
    return [f"{entry['turns']:,}", *map(short, tokens), money(entry["cost_nanousd"])]


def _name(entry: Mapping[str, Any], by: str) -> str:
    return plain((entry["account_alias"] if by == "account" else None) or entry[by])


def _most(by: str) -> int:
    return DAYS_SHOWN if by == "day" else ENTRIES_SHOWN


_FIGURES: Final = (
    Column("REQUESTS", 9, form="figure"),
    Column("INPUT", 6, form="figure"),
    Column("READ", 6, form="figure"),
    Column("WRITE", 6, form="figure"),
    Column("OUTPUT", 6, form="figure"),
    Column("COST", 9, form="figure"),
)
_ROW_COLUMNS: Final = (
    Column("STARTED (UTC)", 16),
    Column("SESSION", 8, 32, "id"),
    Column("KIND", 6),
    Column("MODEL", 13, 36),
    Column("STATUS", 11),
    Column("IN", 5, form="figure"),
    Column("OUT", 5, form="figure"),
    Column("COST", 9, form="figure"),
)
