"""What a request is set up with, and what it shows by itself to be no turn of a conversation.

One rule: words of a prompt stay here; what leaves is hashes.

Theory of operation.  A client that names its session sends more under that name than its conversation: it probes if
there is quota left, asks for a title, sorts messages into topics.  Two of these show it themselves and at once, before
anything is known of the session: who asks for one token wants no answer, and a short request without tools whose prompt
asks for a title is not the work itself.  Everything else is told apart by comparison (`worker.roles`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from daemon.chain import digest
from daemon.providers import Setup
from worker.protocol import SKETCH_HASHES_MAX, Shape


def shape_of(setup: Setup, opening: str, hash_key: bytes) -> Shape:
    """`opening`: the conversation's first message in normal form."""
    return Shape(
        system=_sketch(setup.system, hash_key),
        tools=_sketch(setup.tools, hash_key),
        opening=digest(hash_key, "opening", opening)[:_OPENING_CHARACTERS],
    )


def aside_by_itself(setup: Setup, output_limit: int | None, *, is_opening: bool) -> str:
    """Why a request can be no turn, in words; '' where it may be one."""
    if output_limit is not None and output_limit <= PROBE_TOKENS_MAX:
        return "a probe: it asks for no more than one token"
    if is_opening and not setup.tools and _asks_for_title(setup.system):
        return "it asks for a title or a topic, without tools"
    return ""


def _asks_for_title(system: Sequence[str]) -> bool:
    is_short = sum(map(len, system)) <= TITLE_PROMPT_CHARACTERS_MAX
    return is_short and any(_ASKS_FOR_TITLE.search(line.lower()) for line in system)


def _sketch(texts: Iterable[str], hash_key: bytes) -> str:
    """The smallest hashes: those of two sets are equal as far as the sets are."""
    hashes = {digest(hash_key, "sketch", text)[:_SKETCH_CHARACTERS] for text in texts}
    return " ".join(sorted(hashes)[:SKETCH_HASHES_MAX])


PROBE_TOKENS_MAX: Final = 1
TITLE_PROMPT_CHARACTERS_MAX: Final = 4_000
"""Prompts that ask for a title have 100 to 2,500 characters; a longer one may speak of titles among other things."""
_SKETCH_CHARACTERS: Final = 8
"""32 bits: among 32 hashes a chance equal is one in a million."""
_OPENING_CHARACTERS: Final = 16
_ASKS_FOR_TITLE: Final = re.compile(
    r"(generat|creat|writ|produc|output|extract|suggest|provid|return|giv|mak|summari[sz])\w*\b.{0,80}\btitles?\b"
    r"|\btitle (generator|writer)|\b(session|thread|conversation|chat) (title|name)\b"
    r"|\b(new|conversation) topic\b|summari[sz]e this (coding )?conversation"
)
