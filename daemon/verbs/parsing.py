"""What every verb's command line has in common: help that begins with an example, errors of one line, settings.

One rule: a verb says what it takes and who does it; `daemon.cli` alone runs it.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from typing import Any, Final, NoReturn, TypeAlias

from worker import runtime
from worker.runtime import Fatal
from worker.settings import WITHOUT_FLAG, Settings


class Parser(argparse.ArgumentParser):
    """Help begins with an example; an error is one line."""

    example = ""

    def format_help(self) -> str:
        return f"{self.example}\n\n{super().format_help()}"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """What a verb does not know is an error of that verb: its own help and its own options are what helps."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and self._subparsers is None:
            word, _, _ = unknown[0].partition("=")
            self.error(f"{word!r} is not known here{nearest(word, self._option_string_actions)}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """One word out of several, such as a verb."""
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            guess = nearest(str(value), known) or f"; there are {', '.join(known)}"
            is_what = f"nothing that {action.option_strings[0]} takes" if action.option_strings else "no verb"
            self.error(f"{value!r} is {is_what}{guess}")

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else ";"
        runtime.leave("perdure", Fatal(runtime.EXIT_USAGE, f"{message}{end} `{self.prog} --help` says more"))


Verbs: TypeAlias = "argparse._SubParsersAction[Any]"  # argparse has no public name for it


def add_verb(
    verbs: Verbs, name: str, example: str, does: str, settings: Iterable[str] | None, **defaults: object
) -> Parser:
    """A verb with its settings; None: it has verbs of its own."""
    made: Parser = verbs.add_parser(name, help=does, description=does, allow_abbrev=False)
    made.example = f"Example:  {example}"
    made.set_defaults(**defaults)
    if settings is not None:
        made.add_argument("--config", metavar="FILE", help="a TOML file with settings (PERDURE_CONFIG)")
    for setting in settings or ():
        variable = f"PERDURE_{setting.upper()}"
        default = getattr(_DEFAULTS, setting)
        known = f" (default {default})" if default != "" else ""
        made.add_argument(f"--{setting.replace('_', '-')}", metavar="VALUE", help=f"instead of {variable}{known}")
    return made


def flags_of(options: argparse.Namespace) -> dict[str, str]:
    """The settings on the command line."""
    return {name: value for name, value in vars(options).items() if isinstance(value, str)}


def nearest(word: str, known: Iterable[str]) -> str:
    """A guess at what was meant."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


ID: Final = "an id, an alias, or an id's beginning"
_DEFAULTS: Final = Settings()
SETTINGS: Final = tuple(name for name in Settings.__struct_fields__ if name not in WITHOUT_FLAG)
