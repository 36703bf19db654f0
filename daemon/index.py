"""The newest chain keys and whose they are: how a daemon recognises a conversation without asking.

One rule: the index is a hint.  The worker is the truth; the index decides alone only for sessions this daemon owns,
and while no worker is heard.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from worker.protocol import IndexEntry, Key

HOLDERS_MAX: Final = 8
"""Sessions kept for one value: two already prove nothing."""
INDEX_KEYS_MAX: Final = 100_000
"""Keys kept, the least recently used go first: about 30 MB."""


class KeyIndex:
    """Chain value → sessions that hold it."""

    def __init__(self, limit: int = INDEX_KEYS_MAX) -> None:
        self._limit = limit
        self._holders: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._values: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def load(self, entries: Iterable[IndexEntry]) -> None:
        """Take a page of the preload: older keys than those that are here."""
        for entry in entries:
            if entry.kind != "retry":
                self._hold(entry.value, entry.session_id)
                self._holders.move_to_end(entry.value, last=False)

    def learn(self, session_id: str, keys: Iterable[Key]) -> None:
        """A turn of the session began (a `request` key beside what is known already), or was answered (an `answer` key
        in place of all others).  The store, which keeps only the newest request, is stricter: this is a hint."""
        chain = [key for key in keys if key.kind in ("answer", "request")]
        if any(key.kind == "answer" for key in chain):
            self.forget(session_id)
        for key in chain:
            self._hold(key.value, session_id)

    def continued(self, values: Iterable[str]) -> str:
        """The session that alone holds the first value that anybody holds; '' if there is none."""
        for value in values:
            holders = self._holders.get(value)
            if holders:
                self._holders.move_to_end(value)
                return next(iter(holders)) if len(holders) == 1 else ""
        return ""

    def forget(self, session_id: str) -> None:
        for value in self._values.pop(session_id, ()):
            self._drop(value, session_id)

    def clear(self) -> None:
        self._holders.clear()
        self._values.clear()

    def _hold(self, value: str, session_id: str) -> None:
        holders = self._holders.get(value, frozenset())
        if len(holders) >= HOLDERS_MAX:
            return  # It is nobody's as it is.
        self._holders[value] = holders | {session_id}
        self._values.setdefault(session_id, set()).add(value)
        while len(self._holders) > self._limit:
            oldest, holders = self._holders.popitem(last=False)
            for holder in holders:
                self._values[holder].discard(oldest)
                if not self._values[holder]:
                    del self._values[holder]

    def _drop(self, value: str, session_id: str) -> None:
        left = self._holders.get(value, frozenset()) - {session_id}
        if left:
            self._holders[value] = left
        else:
            self._holders.pop(value, None)
