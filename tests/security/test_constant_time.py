"""The token is compared in a time that does not tell how much of a guess is right: read from the source.

One rule: whatever holds the token, ours or the one that was given, is looked at by `hmac.compare_digest` and by nothing
else.  Run with a clock this would be seen now and then; in the syntax tree it is always.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
ADMISSION: Final = (ROOT / "daemon" / "admission.py").read_text("utf-8")
SECRETS: Final = frozenset({"token", "given"})
"""Names, as variables or as attributes, that stand for a token in the file."""
TAKERS: Final = frozenset({"_is_token", "hmac.compare_digest"})
"""Who may be given one.  The first hands it on to the second; it is looked at like the rest."""


def loose_uses(source: str) -> list[str]:
    """Where a token is neither handed to one of these, nor only asked whether there is one."""
    tree = ast.parse(source)
    allowed = {id(inner) for node in ast.walk(tree) for use in _uses(node) for inner in ast.walk(use)}
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if _is_secret(node) and id(node) not in allowed and isinstance(node, ast.expr)
    ]


def _uses(node: ast.AST) -> Iterator[ast.AST]:
    """What a token may be part of."""
    match node:
        case ast.Call(func=taker, args=arguments) if ast.unparse(taker) in TAKERS:
            yield from (argument for argument in arguments if not _compares(argument))
        case ast.If(test=ast.Name() | ast.Attribute() as test):
            yield test


def _compares(node: ast.AST) -> bool:
    return any(isinstance(inner, ast.Compare | ast.Subscript) for inner in ast.walk(node))


def _is_secret(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name, ctx=ast.Load()):
            return name in SECRETS
        case ast.Call(func=ast.Name(id="_values"), args=[_, ast.Name(id="TOKEN_HEADER")]):
            return True
    return False


def test_token_is_looked_at_by_nothing_but_the_compare_of_constant_time() -> None:
    assert loose_uses(ADMISSION) == []
    assert ADMISSION.count("hmac.compare_digest(") == 1 and "import hmac\n" in ADMISSION


DIGEST: Final = 'hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode())'
ASKED: Final = '_is_token(next(_values(headers, TOKEN_HEADER), ""), self.token)'
LENGTHS: Final = "if len(given) != len(token):\n        return False"


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (DIGEST, "given == token"),
        (DIGEST, "token.startswith(given)"),
        (DIGEST, "not {given} - {token}"),
        (f"return {DIGEST}", f"{LENGTHS}\n    return {DIGEST}"),
        (ASKED, "self.token in _values(headers, TOKEN_HEADER)"),
        (ASKED, 'next(_values(headers, TOKEN_HEADER)) == "Open-Sesame"'),
        ("if self.token:", "if self.token and headers[0][1] != self.token:"),
        ("self.token)", "self.token[:4])"),
    ],
)
def test_any_other_look_at_it_is_found(right: str, wrong: str) -> None:
    assert right in ADMISSION
    assert loose_uses(ADMISSION.replace(right, wrong))


def test_no_other_file_compares_the_token_with_anything() -> None:
    for path in [*(ROOT / "daemon").rglob("*.py"), *(ROOT / "worker").rglob("*.py")]:
        compares = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Compare)]
        assert not [ast.unparse(each) for each in compares if _is_of_token(each)], path


def _is_of_token(compare: ast.Compare) -> bool:
    is_equality = any(isinstance(operator, ast.Eq | ast.NotEq) for operator in compare.ops)
    return is_equality and any(isinstance(n, ast.Attribute) and n.attr == "token" for n in ast.walk(compare))
