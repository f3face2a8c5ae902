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


class Trees(dict[Path, ast.Module]):
    """The code, parsed when it is looked at: each process of tests loads this file."""

    def __missing__(self, path: Path) -> ast.Module:
        self[path] = ast.parse(path.read_text())
        return self[path]


TREES = Trees()

NOUNS = {
    "guards", "errors", "dollars", "money", "duration", "window", "naming", "pace", "keep", "budget", "request",
    "answer", "shortfall", "events", "stats", "clock",
}  # fmt: skip
# Rooms and modules of the top level. Imports go down, or stay on a floor; and never in a circle.
FLOORS = [
    NOUNS,
    {"limits", "ledger", "prices", "foresight", "estimates"},
    {"admission"},
    {"stores", "providers"},
    {"core", "config", "batch", "testing"},
    {"rehearsal"},
    {"adapters", "scheduler", "server", "telemetry"},
    {"cli", "__main__"},
]
PURE = (FLOORS[0] | FLOORS[1] | FLOORS[2]) - {"clock", "guards"} | {"guards.plain", "guards.texts"}
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


def room_of(module: str) -> str:
    return module.removeprefix("scheduler.").partition(".")[0]


def floor_of(module: str) -> int:
    return next(floor for floor, rooms in enumerate(FLOORS) if room_of(module) in rooms)


MODULES = {f"scheduler.{name_of(path)}".removesuffix(".__init__"): path for path in FILES}


def imports(tree: ast.AST, within_functions: bool) -> set[str]:
    """What is imported when a program runs, so without what only type checkers read."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif within_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found |= imports(node, within_functions)
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_the_floors(path):
    module = name_of(path)
    if module == "__init__":
        return
    for imported in imports(TREES[path], within_functions=True) & MODULES.keys() - {"scheduler"}:
        assert floor_of(imported) <= floor_of(module), imported


def test_no_modules_import_each_other_in_a_circle():
    needs = {
        module: imports(TREES[path], within_functions=True) & MODULES.keys() - {module}
        for module, path in MODULES.items()
    }
    while free := {module for module, needed in needs.items() if not needed}:
        needs = {module: needed - free for module, needed in needs.items() if module not in free}

    assert not needs


@pytest.mark.parametrize("room", sorted({path.parent for path in FILES}), ids=str)
def test_every_room_says_its_question(room):
    assert ast.get_docstring(TREES[room / "__init__.py"])


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if {name_of(path), room_of(name_of(path))} & PURE],
    ids=name_of,
)
def test_pure_modules_know_no_loop_clock_or_io(path):
    assert (
        not {name.partition(".")[0] for name in imports(TREES[path], within_functions=False)}
        & IMPURE
    )


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
        assert not prints or name_of(path).startswith(("cli.", "providers.simulated.server")), path


def test_importing_the_package_loads_nothing_heavy():
    heavy = (
        "httpx",
        "aiosqlite",
        "tenacity",
        "genai_prices",
        "pydantic",
        "typer",
        "rich",
        "ray",
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
    r"logging\.getLogger": "guards.plain",  # `logger_of` makes them plain
    r"\bshlex\.": "guards.plain",  # `shell_word` and `command` know what is not printable
    r"add_signal_handler": "guards.signals",  # which Windows has not
    r"os\.kill\(pid": "guards.plain",
    r"os\.fchmod|^import fcntl|^import resource": "guards.plain",  # only where there is such a thing
}


@pytest.mark.parametrize("pattern", DOORS)
def test_there_is_one_door_for_it(pattern):
    found = {
        name_of(path) for path in FILES
        if re.search(pattern, re.sub(r'"""(.|\n)*?"""', "", path.read_text()), re.MULTILINE)
    }  # fmt: skip

    assert found <= {DOORS[pattern]}
