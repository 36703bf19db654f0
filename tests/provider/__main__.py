"""The scripted provider as a program, for use by hand: `python -m tests.provider --port 8099`.

One rule: the same provider as in the tests, only with a fixed port and a line for every answer.
"""

from __future__ import annotations

import argparse
import signal

from tests.provider.ledger import Answered
from tests.provider.server import ScriptedProvider

REPORT_SECONDS = 0.2
"""How often answers that ended are printed: at once to a person."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.provider", description="Play Anthropic and OpenAI.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--seed", type=int, default=0, help="seed of ids and tokens in answers")
    options = parser.parse_args()
    stopped: set[Answered] = set()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ScriptedProvider(port=options.port, seed=options.seed) as provider:
        print(provider.url, flush=True)
        try:
            while True:
                provider.wait_until(lambda: any(_news(provider, stopped)), timeout_seconds=None)
                for answered in _news(provider, stopped):
                    print(_line(answered), flush=True)
                    stopped.add(answered)
        except KeyboardInterrupt:
            print(f"total {provider.usage_total()}", flush=True)


def _news(provider: ScriptedProvider, printed: set[Answered]) -> list[Answered]:
    return [answered for answered in provider.answers if answered.ended and answered not in printed]


def _line(answered: Answered) -> str:
    request = answered.request
    end = "complete" if answered.complete else "client closed" if answered.client_closed else "cut"
    return f"{request.number} {request.method} {request.target} {answered.status} {end} {answered.usage}"


if __name__ == "__main__":
    main()
