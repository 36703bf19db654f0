"""What the witnesses wrote, held against the ledger: did the daemon that answered know every turn that had finished?

One rule: a turn has finished when its END was acknowledged, on whichever daemon; whatever request was sent after that
is answered by somebody who knows of it.

Theory.  A session's settled rows have positions without gaps, given at commit, and a daemon's position says up to which
of them its state is folded.  So "knows every turn that finished before this request was sent" is one comparison of two
numbers.  It is asked when the BEGIN is acknowledged, which is before the client's first byte: then it must hold, for
every answer that was not given without the worker's word.  It is also counted for the moment the BEGIN was put, before
the provider is asked: a daemon that was stopped while another one claimed, or to which that word is still on its way,
may find out only then.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from daemon.worker_client import ACK_WAIT_SECONDS
from worker.protocol import Row

TIMER_SECONDS: Final = 0.01
"""How much earlier than asked a loop's timer may fire: it counts in whole milliseconds from the turn's beginning."""

Line = dict[str, Any]


@dataclass
class Knowledge:
    """What the comparison found.  `stale` and `impatient` are sentences; none is good."""

    compared: int = 0
    late: int = 0
    """Requests begun before their daemon knew all, which it did when the BEGIN was acknowledged."""
    joined: int = 0
    """Requests whose daemon had the worker's word for a session that is part of another one by now: a daemon that had
    not heard the worker had still to tell of the turns that made them one conversation."""
    stale: list[str] = field(default_factory=list)
    impatient: list[str] = field(default_factory=list)
    """Waits for an acknowledgement that were given up too soon."""


def read(path: Path) -> list[Line]:
    """Every line; the last one of a killed daemon may be missing, never broken."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def knowledge_of(
    lines: Sequence[Line],
    rows: Iterable[Row],
    sent_at: Mapping[str, float],
    told: Mapping[str, str] = MappingProxyType({}),
) -> Knowledge:
    """By the request's mark, `sent_at`: when the client sent it; `told`: the session that the client read of."""
    found = Knowledge()
    row_by_mark = {row.client: row for row in rows if row.kind == "turn" and row.position}
    finished: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    begins: list[Line] = []
    for line in sorted(lines, key=lambda line: float(line["at"])):
        row = row_by_mark.get(line.get("mark", ""))
        if line["what"] == "ended" and row is not None:
            before = finished[row.session_id][-1][1] if finished[row.session_id] else 0
            finished[row.session_id].append((line["at"], max(before, row.position)))
        elif line["what"] in ("begin", "begun") and row is not None:
            begins.append(line)
        elif line["what"] == "given up" and line["heard"] and line["waited"] < ACK_WAIT_SECONDS - TIMER_SECONDS:
            found.impatient.append(f"{line['daemon']}: {line['mark']} waited {line['waited']:.3f} s")
    unheard = given_up(lines)
    for line in begins:
        row = row_by_mark[line["mark"]]
        ends = finished[row.session_id]
        earlier = bisect_left(ends, (sent_at[line["mark"]], 0))
        needed = ends[earlier - 1][1] if earlier else 0
        if line["what"] == "begin":
            found.late += line["knows"] < needed
        elif line["mark"] not in unheard:
            found.compared += 1
            if line["knows"] < needed and told.get(line["mark"], row.session_id) != row.session_id:
                found.joined += 1
            elif line["knows"] < needed:
                found.stale.append(
                    f"{line['daemon']} answered {line['mark']} of session {row.session_id} knowing {line['knows']} "
                    f"of the {needed} turns that had finished"
                )
    return found


def given_up(lines: Iterable[Line]) -> frozenset[str]:
    """Marks of the answers that were given without the worker's word."""
    return frozenset(line["mark"] for line in lines if line["what"] == "given up")


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that is not below so many of them; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(percent * 10) // 1000) - 1)] if ordered else 0.0
