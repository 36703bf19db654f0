"""The outbox: what it keeps, what it sends next, what it never forgets."""

from __future__ import annotations

import pytest

from daemon.outbox import IN_FLIGHT_MAX, RESEND_SECONDS, Body, Outbox, OutboxFull
from worker.protocol import Claim, Command, Naming

BODY: Body = Claim(naming=Naming(session_id="s", confirmed=True))


def filled(count: int, limit: int = 10_000) -> Outbox:
    outbox = Outbox(limit)
    for _ in range(count):
        outbox.put(Command.CLAIM, BODY, now=0.0)
    return outbox


def send_all(outbox: Outbox, now: float) -> list[int]:
    """Hand over all that is due; gives the sequences in their order."""
    sent = []
    while (entry := outbox.next_due(now)) is not None:
        outbox.sent(entry, now)
        sent.append(entry.sequence)
    return sent


def test_put_beyond_the_limit_raises() -> None:
    outbox = filled(2, limit=2)

    with pytest.raises(OutboxFull):
        outbox.put(Command.BEGIN, BODY, now=0.0)
    assert len(outbox) == 2


def test_put_of_an_end_beyond_the_limit_is_kept() -> None:
    outbox = filled(2, limit=2)

    sequence = outbox.put(Command.END, BODY, now=0.0)

    assert sequence in outbox


def test_put_after_an_acknowledgement_has_room_again() -> None:
    outbox = filled(2, limit=2)
    outbox.acked(1)

    assert outbox.put(Command.BEGIN, BODY, now=0.0) == 3


def test_next_due_of_unsent_writes_keeps_their_order() -> None:
    assert send_all(filled(3), now=0.0) == [1, 2, 3]


def test_next_due_with_a_full_window_waits_for_an_acknowledgement() -> None:
    outbox = filled(IN_FLIGHT_MAX + 2)

    assert len(send_all(outbox, now=0.0)) == IN_FLIGHT_MAX
    outbox.acked(7)
    assert send_all(outbox, now=0.0) == [IN_FLIGHT_MAX + 1]


def test_next_due_before_the_silence_is_over_gives_nothing() -> None:
    outbox = filled(1)
    send_all(outbox, now=0.0)

    assert outbox.next_due(RESEND_SECONDS - 0.01) is None


def test_next_due_after_silence_sends_the_longest_silent_first() -> None:
    outbox = filled(2)
    send_all(outbox, now=0.0)
    outbox.put(Command.CLAIM, BODY, now=0.5)
    send_all(outbox, now=0.5)

    assert send_all(outbox, now=RESEND_SECONDS) == [1, 2]
    assert send_all(outbox, now=0.5 + RESEND_SECONDS) == [3]


def test_sent_again_keeps_the_write_until_it_is_acknowledged() -> None:
    outbox = filled(1)
    for again in range(5):
        assert send_all(outbox, now=again * RESEND_SECONDS) == [1]

    entry = outbox.acked(1)

    assert entry is not None and entry.sequence == 1
    assert len(outbox) == 0


def test_acked_twice_gives_nothing_the_second_time() -> None:
    outbox = filled(1)
    outbox.acked(1)

    assert outbox.acked(1) is None
    assert outbox.acked(99) is None


def test_acked_before_it_was_sent_is_removed() -> None:
    outbox = filled(2)

    outbox.acked(1)

    assert send_all(outbox, now=0.0) == [2]


def test_resend_all_with_sent_and_unsent_writes_starts_from_the_oldest() -> None:
    outbox = filled(3)
    send_all(outbox, now=0.0)
    send_all(outbox, now=RESEND_SECONDS)
    outbox.acked(2)
    outbox.put(Command.CLAIM, BODY, now=1.5)

    outbox.resend_all()

    assert send_all(outbox, now=1.5) == [1, 3, 4]


def test_oldest_seconds_counts_from_the_put_not_from_the_sending() -> None:
    outbox = filled(1)
    send_all(outbox, now=5.0)
    outbox.put(Command.CLAIM, BODY, now=6.0)

    assert outbox.oldest_seconds(now=8.0) == 8.0
    outbox.acked(1)
    assert outbox.oldest_seconds(now=8.0) == 2.0


def test_oldest_seconds_of_an_empty_outbox_is_zero() -> None:
    assert Outbox(1).oldest_seconds(now=8.0) == 0.0


def test_oldest_seconds_after_a_resend_still_finds_the_oldest() -> None:
    outbox = filled(1)
    outbox.put(Command.CLAIM, BODY, now=0.5)
    send_all(outbox, now=0.5)
    first = outbox.next_due(0.5 + RESEND_SECONDS)
    assert first is not None
    outbox.sent(first, 0.5 + RESEND_SECONDS)

    assert outbox.oldest_seconds(now=2.0) == 2.0


def test_adopted_writes_do_not_fill_it() -> None:
    outbox = Outbox(2)
    adopted = [outbox.adopt(Command.END, BODY, now=0.0) for _ in range(5)]

    outbox.put(Command.BEGIN, BODY, now=0.0)
    assert not outbox.is_full
    outbox.put(Command.BEGIN, BODY, now=0.0)
    assert outbox.is_full and len(outbox) == 7

    outbox.acked(adopted[0])
    outbox.acked(adopted[0])
    with pytest.raises(OutboxFull):
        outbox.put(Command.BEGIN, BODY, now=0.0)


def test_own_writes_are_those_that_were_not_adopted_in_their_order() -> None:
    outbox = filled(2)
    outbox.adopt(Command.END, BODY, now=0.0)
    send_all(outbox, now=0.0)
    last = outbox.put(Command.END, BODY, now=0.0)

    assert [entry.sequence for entry in outbox.own()] == [1, 2, last]
