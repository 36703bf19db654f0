"""What every verb's command line has in common: help that begins with an example, errors of one line, settings.

One rule: a verb says what it takes and who does it; `daemon.cli` alone runs it.
"""

from __future__ import annotations

import argparse
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

    def error(self, message: str) -> NoReturn:
        runtime.leave("perdure", Fatal(runtime.EXIT_USAGE, f"{message}; `{self.prog} --help` says more"))


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


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


ID: Final = "an id, an alias, or an id's beginning"
_DEFAULTS: Final = Settings()
SETTINGS: Final = tuple(name for name in Settings.__struct_fields__ if name not in WITHOUT_FLAG)
