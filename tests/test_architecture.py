"""The rules that the layout stands on, read from the source: layers, edges, purity, sizes, words.

One rule: nothing here runs the programs; a rule that can only be seen by running them is tested elsewhere.
"""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(p for folder in ("daemon", "worker") for p in (ROOT / folder).rglob("*.py") if p.stat().st_size)
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8")) for path in SOURCES}
NAMES = sorted(TREES)

LINES_MAX = 70
LINES_P90_MAX = 40

SHARED = {
    *("protocol", "roles", "runtime", "settings", "configured", "logs", "metrics", "records", "standing", "curve"),
    *("notify", "rollcall"),
}
"""What a daemon may use of the worker's layer."""
COMMAND_LINE = ("daemon/cli.py", "daemon/verbs/")
ALSO = {"adopt", "backup", "copies", "store"}
"""The command line reads the database itself, so that it works with every process dead."""

EDGES = {
    "apsw": {"worker/store.py"},
    "zmq": {"worker/server.py", "worker/curve.py", "daemon/worker_client.py"},
    "sqlite3": {"daemon/foreign.py"},
    "aiohttp": {"daemon/http_server.py", "daemon/upstream.py"},
}
PURE = [
    "worker/protocol.py",
    "worker/adopt.py",
    "worker/amend.py",
    "worker/correction.py",
    "worker/forget.py",
    "worker/batch.py",
    "worker/hints.py",
    "worker/idle.py",
    "worker/roles.py",
    "worker/stored.py",
    "worker/ledger.py",
    "worker/retention.py",
    "worker/switch.py",
    "worker/standing.py",
    "worker/tables.py",
    "worker/records.py",
    "worker/census.py",
    "daemon/accounts.py",
    "daemon/admission.py",
    "daemon/agents.py",
    "daemon/bills.py",
    "daemon/booking.py",
    "daemon/chain.py",
    "daemon/columns.py",
    "daemon/cost.py",
    "daemon/doctor.py",
    "daemon/gradient.py",
    "daemon/hints.py",
    "daemon/identity.py",
    "daemon/index.py",
    "daemon/keepalive.py",
    "daemon/latches.py",
    "daemon/lore.py",
    "daemon/outbox.py",
    "daemon/pages.py",
    "daemon/routing.py",
    "daemon/savings.py",
    "daemon/shape.py",
    "daemon/spill.py",
    "daemon/standing.py",
    "daemon/state.py",
    "daemon/trace.py",
    "daemon/views.py",
    "daemon/warming.py",
    "daemon/warmth.py",
    *(name for name in NAMES if name.startswith("daemon/providers/")),
]
IMPURE = {"asyncio", "socket", "time", "random", "logging", "os", "threading", "secrets", "subprocess", "sys"}
EXEMPT = {("daemon/booking.py", "secrets"), ("daemon/identity.py", "secrets")}
"""Who draws an id needs chance; nothing is decided by it."""
MUTATORS = {"append", "add", "update", "pop", "clear", "extend", "insert", "setdefault", "remove", "discard", "popitem"}


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what a file imports; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every function with its length in lines, its docstring not counted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            said = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            docstring = (first.end_lineno or 0) - first.lineno + 1 if said else 0
            yield node.name, (node.end_lineno or 0) - node.lineno + 1 - docstring


def test_there_is_something_to_look_at() -> None:
    assert len(NAMES) > 30 and set(PURE) <= set(NAMES)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("worker/")])
def test_worker_never_imports_daemon(name: str) -> None:
    assert not [found for found in imports(TREES[name]) if found.split(".")[0] == "daemon"]


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("daemon/")])
def test_daemon_uses_only_the_shared_part_of_the_worker(name: str) -> None:
    used = {found.split(".")[1] for found in imports(TREES[name]) if found.startswith("worker.")}
    assert used <= SHARED | (ALSO if name.startswith(COMMAND_LINE) else set())


@pytest.mark.parametrize("library", EDGES)
def test_edge_library_is_imported_exactly_where_the_map_says(library: str) -> None:
    found = {name for name in NAMES if any(i.split(".")[0] == library for i in imports(TREES[name]))}
    assert found == EDGES[library]


@pytest.mark.parametrize("name", PURE)
def test_pure_file_touches_no_clock_chance_or_world(name: str) -> None:
    found = {i.split(".")[0] for i in imports(TREES[name])} & IMPURE
    assert {(name, module) for module in found} <= EXEMPT


@pytest.mark.parametrize("name", NAMES)
def test_file_says_what_it_is_for(name: str) -> None:
    assert len(ast.get_docstring(TREES[name]) or "") > 20


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_short_enough_to_be_read(name: str) -> None:
    assert [(function, lines) for function, lines in functions(TREES[name]) if lines > LINES_MAX] == []


def test_most_functions_are_much_shorter() -> None:
    lengths = [lines for tree in TREES.values() for _, lines in functions(tree)]
    assert statistics.quantiles(lengths, n=10)[8] < LINES_P90_MAX


def is_mutable(value: ast.expr | None) -> bool:
    made = isinstance(value, ast.Call) and isinstance(value.func, ast.Name)
    called = value.func.id if made and isinstance(value, ast.Call) and isinstance(value.func, ast.Name) else ""
    displays = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
    return isinstance(value, displays) or called in {"list", "dict", "set", "defaultdict", "deque", "Counter"}


@pytest.mark.parametrize("name", NAMES)
def test_module_has_no_mutable_state(name: str) -> None:
    """A table of constants is fine: annotated Final, and never written to anywhere in its file."""
    constants: set[str] = set()
    for node in TREES[name].body:
        if isinstance(node, ast.Assign) and is_mutable(node.value) and ast.unparse(node.targets[0]) != "__all__":
            pytest.fail(f"line {node.lineno}: a mutable value at module level that is not Final")
        if isinstance(node, ast.AnnAssign) and is_mutable(node.value) and isinstance(node.target, ast.Name):
            assert "Final" in ast.unparse(node.annotation), f"line {node.lineno}: not Final"
            constants.add(node.target.id)
    for inner in ast.walk(TREES[name]):
        assert not isinstance(inner, ast.Global), f"line {inner.lineno}: a global is written"
        assert not writes_to(inner, constants), f"line {inner.lineno}: a constant is changed"  # type: ignore[attr-defined]


def writes_to(node: ast.AST, names: set[str]) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        return isinstance(node.func.value, ast.Name) and node.func.value.id in names
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        return isinstance(node.value, ast.Name) and node.value.id in names
    return False


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_leaves_nothing_for_later(path: Path) -> None:
    text = path.read_text("utf-8")
    assert [word for word in ("TODO", "FIXME", "XXX", "HACK") if word in text] == []


def test_every_setting_is_in_the_example() -> None:
    example = (ROOT / "perdure.example.toml").read_text("utf-8")
    assert [n for n in Settings.__struct_fields__ if f"\n# {n} = " not in example and f"\n# [{n}]" not in example] == []


PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "ARCHITECTURE.md"]
PLACEHOLDER = re.compile(r"[\[<{(*_]*[A-Z]{2,}[A-Z _-]*[\]>})*_:.…!]*")


def placeholders(text: str) -> list[str]:
    """Lines of nothing but capitals, where words or figures are to come; code may have such."""
    prose = text.split("```")[::2]
    return [line for part in prose for line in part.splitlines() if PLACEHOLDER.fullmatch(line.strip())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_of_a_page_is_a_placeholder(page: Path) -> None:
    assert placeholders(page.read_text("utf-8")) == []


def test_placeholder_in_a_page_is_found() -> None:
    told = "## Figures\n\nFIGURES\n[TODO]\nTO BE DONE…\n\nUse `X`.\nWAL and SQL\n```\nFIGURES\n```\n"
    assert placeholders(told) == ["FIGURES", "[TODO]", "TO BE DONE…"]
