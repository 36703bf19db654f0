"""A scripted provider: one loopback server that plays Anthropic and OpenAI for the whole suite.

One rule: whatever reaches a client is what the real providers would send, or a fault that a marker asked for; and the
ledger says exactly which of the two, to whom, and how much usage was told.

Theory of operation.  `ScriptedProvider` runs in a thread with an event loop of its own, so that it outlives whatever
happens to the processes under test.  A request is read into a `Dialog`, the dialog's newest user text is read for
markers (`Script`), the prompt is counted against a model of prompt caching (`PromptCache`), a `Reply` is composed,
and one of `messages`, `chat` and `responses` gives it the provider's shape.  `server` delivers it, with the faults.

Markers are whole words in the newest user text (reminders left out), and may be combined.  While a client sends tool
results the text before them is still the newest, so its markers hold for the whole tool chain.

    words:N             the answer has N words
    big:BYTES           the answer is a text of so many bytes, in deltas of 4 KiB
    use-tool:N          call a tool N times, one call per answer, before the answer in words
    cold                the whole prompt is reported as written to the cache, nothing as read (OpenAI: nothing cached)
    no-usage            the answer does not tell its usage
    encode:NAME         compress with gzip, deflate, br or zstd, asked for or not
    delay-ms:N          wait before every event (before a body that is not streamed: once)
    stall:NAME          send nothing until `release(NAME)`
    slow-headers:NAME   send the status line only, the rest after `release(NAME)`
    hold:NAME           stop after the first content delta (a body: after its first half) until `release(NAME)`
    fail-STATUSxN       this status for the first N attempts of the same body; without xN for every attempt
    drop                close the connection without an answer, once for the same body (after its failures, if any)
    cut-after:N         close the connection after N events (a body: after N bytes), without a proper end
    sse-error           an error event after the first content delta, and no more
    json-garbage        200 with a body that is not JSON, although it says so
    garbage             bytes that are not HTTP, then close

What no marker can ask for is scripted: `script` is given Canned answers, or Verbatim bytes that may be anything at all.

An opened gate stays open: `release` lets pass who waits and who will come by that name.

Token counts are a plain function of the text (`prompt_cache.unit_tokens`, `prompt_cache.output_tokens`), and nothing
expires unless `forget_cache` is called.  A missing credential is one of its own, not refused.
"""

from __future__ import annotations

from tests.provider.ledger import Answered, Arrived
from tests.provider.reply import Canned, Verbatim
from tests.provider.script import Script
from tests.provider.server import ScriptedProvider

__all__ = ["Answered", "Arrived", "Canned", "Script", "ScriptedProvider", "Verbatim"]
