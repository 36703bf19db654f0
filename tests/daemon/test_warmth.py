"""The page of `perdure warm`: it fits a line, tells what a program is told, and shows no control characters."""

from __future__ import annotations

from typing import Any

from daemon.columns import WIDTH, Screen
from daemon.savings import Saving, Told
from daemon.views import savings_object
from daemon.warmth import SESSIONS_SHOWN, warm_page
from worker.protocol import HandSet, Latch, Switch

LATCH = Latch("credential", "account-1", "the provider refused the credential", 1_750_000_000_000)


def page(switch: Switch | None = None, *told: Told, known: bool = True) -> str:
    shown: dict[str, Any] = savings_object(switch or Switch(), told, "2026-01-01")
    return warm_page({**shown, "latches_known": known}, Screen())


def test_page_says_how_it_is_switched_and_what_to_do() -> None:
    assert "off; `perdure warm --on` sends pings" in page()
    assert "on" in page(Switch(is_on=True)).splitlines()[0]
    assert page().count("nothing") == 2


def test_page_shows_net_figures_of_what_was_sent_and_what_would_have_been() -> None:
    sent = Saving(pings=3, hits=1, cost_nanousd=90_000_000, saved_nanousd=345_000_000)
    lost = Saving(pings=1, cost_nanousd=30_000_000)
    shown = page(Switch(), Told("4f1c2b" * 5, "claude-code", sent, lost))
    assert "3 pings, 1 hit; cost $0.0900, saved $0.3450: net $0.2550" in " ".join(shown.split())
    assert "1 ping, 0 hits; cost $0.0300, would have saved $0.0000: net -$0.0300" in " ".join(shown.split())
    (line,) = [each for each in shown.splitlines() if each.startswith("4f1c2b")]
    assert line.split()[-6:] == ["3", "1", "$0.2550", "1", "0", "-$0.0300"]
    assert "as if every client had a key of its own" in shown


def test_page_lists_what_was_set_by_hand_and_what_stands_against_it() -> None:
    switch = Switch(sessions=[HandSet("4f1c2b", "off", 0)], latches=[LATCH])
    shown = " ".join(page(switch).split())
    assert "4f1c2b: off" in shown
    assert "credential account-1: the provider refused the credential, until 2025-06-15 15:06" in shown
    assert "not known: the worker does not answer" in page(known=False)


def test_page_fits_its_lines_whatever_stands_in_it() -> None:
    huge = Saving(10**6, 10**5, 10**15, 10**9)
    told = [Told(f"{number:032x}", "name\x1b[31m" * 9, huge, huge) for number in range(SESSIONS_SHOWN + 5)]
    hand_set = [HandSet("f" * 32, "auto", 1)]
    shown = page(Switch(is_on=True, sessions=hand_set, latches=[LATCH]), *told)
    assert all(len(line) <= WIDTH for line in shown.splitlines()), max(shown.splitlines(), key=len)
    assert "\x1b" not in shown and "and 5 more: `perdure warm --json`" in shown
