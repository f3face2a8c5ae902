"""Properties of the code itself: who imports whom, sizes, documentation."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "scheduler").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

# Imports point from later layers to earlier ones, or stay within one.
LAYERS = [
    {"errors", "installed", "money", "duration", "window", "naming", "budget", "request", "plain"},
    {
        "usage",
        "tokens",
        "rates",
        "billing",
        "media",
        "counting",
        "counting_google",
        "outputs",
        "lenient",
        "surcharges",
        "searches",
        "ledger",
        "admission",
        "shortfall",
        "matching",
        "stats",
        "events",
        "suspense",
        "texts",
        "marks",
        "limits",
        "meters",
        "gates",
        "sse",
        "routing",
        "notices",
        "hooks",
    },
    {"providers.base"},
    {"pricing", "deployments"},
    {"clock", "signals"},
    {"stores", "providers"},
    {"retry", "config"},
    {
        "future",
        "mapping",
        "stream",
        "steady",
        "tally",
        "tries",
        "terms",
        "twins",
        "unsent",
        "waiters",
        "elsewhere",
        "flight",
        "ending",
        "calls",
        "aliases",
        "declared",
        "intake",
        "nesting",
        "stuck",
        "opening",
        "parts",
        "pace",
        "resting",
        "alarm",
        "pump",
        "resolver",
        "adoption",
        "governing",
        "scheduler",
        "batch",
        "testing",
    },
    {"adapters"},
    {"cli", "__main__"},
]
PURE = LAYERS[0] | LAYERS[1] | {"pricing", "deployments"}
IMPURE = {
    "asyncio",
    "anyio",
    "httpx",
    "aiosqlite",
    "sqlite3",
    "tenacity",
    "time",
    "random",
    "threading",
}
MOST_LINES, MOST_FUNCTION_LINES = 700, 75


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "scheduler").with_suffix("").parts)


def layer_of(module: str) -> int:
    for position, layer in enumerate(LAYERS):
        if module in layer:
            return position
    return next(i for i, layer in enumerate(LAYERS) if module.partition(".")[0] in layer)


def imports(tree: ast.AST) -> set[str]:
    """Modules imported when the module is, below functions and TYPE_CHECKING left out."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path):
    module = name_of(path)
    if module in ("__init__", "cli.__init__"):
        return
    known = {f"scheduler.{name_of(other)}" for other in FILES}
    for imported in imports(TREES[path]) & known:
        assert layer_of(imported.removeprefix("scheduler.")) <= layer_of(module), imported


@pytest.mark.parametrize(
    "path", [path for path in FILES if name_of(path).partition(".")[0] in PURE], ids=name_of
)
def test_pure_modules_know_no_loop_clock_or_io(path):
    assert not {name.partition(".")[0] for name in imports(TREES[path])} & IMPURE


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_and_functions_can_be_held_in_the_head(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= MOST_FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_public_is_documented_and_nothing_is_left_to_do(path):
    assert ast.get_docstring(TREES[path]) or path.name == "__main__.py"
    text = path.read_text()
    for word in ("TODO", "FIXME", "XXX"):
        assert word not in text


def test_only_the_command_line_prints():
    for path in FILES:
        calls = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)]
        prints = any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)
        assert not prints or name_of(path).startswith(("cli.", "providers.simulated_server")), path


def test_importing_the_package_loads_nothing_heavy():
    heavy = (
        "httpx",
        "aiosqlite",
        "tenacity",
        "genai_prices",
        "pydantic",
        "typer",
        "rich",
        "asyncio",
    )
    program = f"import sys, scheduler; print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


def test_the_public_names_are_complete_and_in_order():
    import scheduler

    assert scheduler.__all__ == sorted(scheduler.__all__, key=lambda name: (name.islower(), name))
    for name in scheduler.__all__:
        assert getattr(scheduler, name) is not None
        assert name in dir(scheduler)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = scheduler.Nothing


DOORS = {
    r"logging\.getLogger": "plain",  # `logger_of` makes them plain
    r"\bshlex\.": "plain",  # `shell_word` and `command` know what is not printable
    r"add_signal_handler": "signals",  # which Windows has not
    r"os\.kill\(pid": "plain",
    r"os\.fchmod|^import fcntl|^import resource": "plain",  # only where there is such a thing
}


@pytest.mark.parametrize("pattern", DOORS)
def test_there_is_one_door_for_it(pattern):
    found = {
        name_of(path) for path in FILES
        if re.search(pattern, re.sub(r'"""(.|\n)*?"""', "", path.read_text()), re.MULTILINE)
    }  # fmt: skip

    assert found <= {DOORS[pattern]}
