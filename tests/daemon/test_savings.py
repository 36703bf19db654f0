"""What pings cost and save, from rows: every figure worked out by hand at 3 dollars a million tokens of input."""

from __future__ import annotations

from typing import Any, Final

from daemon.keepalive import decide
from daemon.savings import Rates, Saving, Savings, Told, total_of
from tests.daemon.test_keepalive import dollars_3_15, facts
from worker.protocol import Row, Usage

NOON: Final = 1_750_000_000_000
MINUTE: Final = 60_000
TOKENS: Final = 100_000
PING: Final = 300 * TOKENS
SAVES: Final = (3_750 - 300) * TOKENS
COLD: Final = Usage(cache_write_5m_tokens=TOKENS)
WARM: Final = Usage(cache_read_tokens=TOKENS)
AGES: Final = NOON + 365 * 24 * 60 * MINUTE


def row(minute: float, usage: Usage | None = WARM, *, kind: Any = "turn", **changes: Any) -> Row:
    at = NOON + int(minute * MINUTE)
    values: dict[str, Any] = {"session_id": "s", "protocol": "messages", "cost_nanousd": 7, "text_only": False}
    values |= {"status": "complete", "started_at": at, "ended_at": at + 1, "provider": "p", "model": "m", "client": "c"}
    return Row(event_id=f"event-{minute:08.2f}", kind=kind, usage=usage, **{**values, **changes})


def told(*rows: Row, now: float = 0.0, **known: Any) -> list[Told]:
    savings = Savings(lambda _row, usage: dollars_3_15(usage), **known)
    for each in rows:
        savings.add(each)
    return savings.told(NOON + int(now * MINUTE))


def pauses(*minutes: float, usage: Usage = COLD) -> list[Row]:
    """Turns after pauses of so many minutes; the first three in one go, so that there is something to go by."""
    at, found = 0.0, [row(0.0, COLD), row(0.1), row(0.2)]
    for pause in minutes:
        at = found[-1].started_at / MINUTE - NOON / MINUTE + pause
        found.append(row(round(at, 2), usage))
    return found


def test_cold_turn_after_a_pause_is_what_pings_would_have_saved() -> None:
    """Due at 4:15 and 8:30; the second keeps it warm until 13:30."""
    ((name, client, sent, shadow),) = told(*pauses(12.0), now=12.3)
    assert (name, client, sent) == ("s", "c", Saving())
    assert shadow == Saving(pings=2, hits=1, cost_nanousd=2 * PING, saved_nanousd=SAVES)
    assert shadow.net_nanousd == SAVES - 2 * PING


def test_pause_within_the_window_saves_nothing_and_one_that_nobody_ended_only_costs() -> None:
    assert told(*pauses(4.0, usage=WARM), now=4.3) == []
    ((_, _, _, shadow),) = told(*pauses(4.5, usage=WARM), now=4.8)
    assert shadow == Saving(pings=1, cost_nanousd=PING), "it was still warm by itself"
    ((_, _, _, shadow),) = told(*pauses(), now=10**6)
    assert (shadow.pings, shadow.hits, shadow.saved_nanousd) == (11, 0, 0), "up to where it can win nothing any more"


def test_turn_that_comes_too_late_for_the_last_ping_saves_nothing() -> None:
    ((_, _, _, shadow),) = told(*pauses(120.0), now=120.3)
    assert shadow.hits == 0 and shadow.cost_nanousd == shadow.pings * PING and shadow.pings == 11


def test_credit_is_for_what_the_turn_wrote_again_and_no_more() -> None:
    ((_, _, _, part),) = told(
        *pauses(8.0, usage=Usage(cache_read_tokens=TOKENS - 10, cache_write_5m_tokens=10)), now=8.3
    )
    assert part.saved_nanousd == (3_750 - 300) * 10
    ((_, _, _, more),) = told(*pauses(8.0, usage=Usage(cache_write_5m_tokens=9 * TOKENS)), now=8.3)
    assert more.saved_nanousd == SAVES, "what is new would have been written in any case"


def test_pings_that_were_sent_cost_what_their_rows_say_and_save_by_the_read_that_proves_it() -> None:
    pings = [row(4.45, kind="warmup", cost_nanousd=40), row(8.7, kind="warmup", cost_nanousd=50)]
    ((_, _, sent, shadow),) = told(*pauses(), *pings, row(12.0), now=12.0)
    assert sent == Saving(pings=2, hits=1, cost_nanousd=90, saved_nanousd=SAVES)
    assert shadow == Saving(), "nothing is counted twice"
    ((_, _, missed, _),) = told(*pauses(), *pings, row(60.0, COLD), now=60.0)
    assert missed == Saving(pings=2, hits=0, cost_nanousd=90)


def test_only_what_a_daemon_would_decide_is_counted() -> None:
    assert decide(facts()).send
    assert told(*pauses(12.0), now=12.3, children={"s"}) == []
    assert told(*pauses(12.0), now=12.3, settings={"s": "off"}) == []
    assert told(*[row(minute, protocol="chat") for minute in (0, 1, 2, 14)], now=14) == []
    assert told(row(0.0, COLD), row(14.0, COLD), now=14.0) == [], "too few turns"
    quick = [row(number / 10, session_id="t") for number in range(200)]
    assert told(*quick, *pauses(12.0), now=12.3) == [], "nobody here is ever away for so long"


def test_total_is_the_sum_of_the_sessions() -> None:
    both = [
        *pauses(12.0),
        *(row(each.started_at / MINUTE - NOON / MINUTE, each.usage, session_id="t") for each in pauses()),
    ]
    found = told(*both, now=12.3)
    sent, shadow = total_of(found)
    assert {each.session_id for each in found} == {"s", "t"}
    assert shadow.pings == sum(each.shadow.pings for each in found) and sent == Saving()


def test_rates_are_looked_up_once_and_give_what_the_prices_give() -> None:
    asked: list[Usage] = []

    def price(_provider: str, model: str, usage: Usage, _at: int) -> int | None:
        asked.append(usage)
        return dollars_3_15(usage) if model == "m" else None

    rates = Rates(price)
    for tokens in (51_234, 48_765, 52_001):
        usage = Usage(input_tokens=3, cache_read_tokens=tokens, cache_write_1h_tokens=tokens)
        assert rates.price_of(row(0), usage) == dollars_3_15(usage)
    assert len(asked) == 3, "one for each kind"
    assert rates.price_of(row(0, model="unknown"), Usage(cache_read_tokens=5)) is None
    assert rates.price_of(row(0), Usage()) == 0
    assert rates.price_of(row(60 * 24 * 400), Usage(input_tokens=3)) == 9_000 and len(asked) == 5, "prices change"
