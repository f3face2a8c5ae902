"""The programs in the page on adoption print what stands below them."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from scheduler.cli import adopting
from tests import warm
from tests.frameworks.table import read_rows

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "adoption.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


def test_all_but_one_of_them_run():
    assert len(PROGRAMS) == PAGE.count("```python") - 1 == 4


@pytest.mark.parametrize(("program", "output"), PROGRAMS)
def test_a_program_prints_what_stands_below_it(program, output, tmp_path):
    done = warm.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False,
    )  # fmt: skip

    assert done.stdout == output, done.stderr


def test_the_one_that_is_a_pattern_compiles():
    (pattern,) = [
        each for each in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "library" in each
    ]
    compile(pattern, "adoption.md", "exec")


@pytest.mark.parametrize(
    "package", ["openai", "anthropic", "groq", "mistralai", "google-genai", "litellm"]
)
def test_the_table_names_the_major_versions_that_are_tried(package):
    table = PAGE.partition("| SDK | tried |")[2]
    (row,) = re.findall(rf"^\| `{package}`.*$", table, re.MULTILINE)

    assert f" {version(package).partition('.')[0]}." in row


# The table of frameworks; `make frameworks` runs what it says

ROWS = read_rows()
MODULES = {
    path: [each.name for each in ast.walk(ast.parse(path.read_text()))
           if isinstance(each, ast.AsyncFunctionDef) and each.name.startswith("test_")]
    for path in (ROOT / "tests" / "frameworks").glob("*.py")
}  # fmt: skip


def test_each_row_of_the_table_has_one_test_and_each_test_a_row():
    tests = [name for names in MODULES.values() for name in names]

    assert sorted(tests) == sorted(row.test for row in ROWS.values())
    assert len(ROWS) >= 30


def test_all_modules_that_have_some_are_run():
    rule = (ROOT / "Makefile").read_text().partition("\nframeworks: $(DEV)")[2]

    for path, tests in MODULES.items():
        assert bool(tests) == (f"tests/frameworks/{path.name}" in rule.split("\n\n")[0]), path.name


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_line_uses_the_scheduler_and_is_one_or_two_statements(row):
    code = ast.parse(row.code)
    names = {each.id for each in ast.walk(code) if isinstance(each, ast.Name)}

    assert "s" in names
    assert 1 <= len(code.body) <= 2
    assert row.parks


def test_doctor_tells_the_same_lines():
    codes = {row.code for row in ROWS.values()}

    for row in adopting.TABLE:
        if row.line not in (adopting.INSTRUMENT, adopting.BY_QUOTE):
            assert row.line.replace("; ", "\n") in codes, row.name
