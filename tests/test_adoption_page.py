"""The programs in the page on adoption print what stands below them."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "adoption.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


def test_all_but_one_of_them_run():
    assert len(PROGRAMS) == PAGE.count("```python") - 1 == 4


@pytest.mark.parametrize(("program", "output"), PROGRAMS)
def test_a_program_prints_what_stands_below_it(program, output, tmp_path):
    done = subprocess.run(
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
    (row,) = re.findall(rf"^\| `{package}`.*$", PAGE, re.MULTILINE)

    assert f" {version(package).partition('.')[0]}." in row
