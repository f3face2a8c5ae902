"""docs/fleet.md on Ray: its commands say what stands below them, its programs answer their rows."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes.harness import write_prompts

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "fleet.md").read_text()
(SECTION,) = re.findall(r"## On a Ray cluster\n.*?(?=\n## )", PAGE, re.DOTALL)
STEPS = re.findall(
    r"^\$ (scheduler .+)\n((?:(?!\$ ).*\n)*)",
    "".join(re.findall(r"```console\n(.*?)```", SECTION, re.DOTALL)), re.MULTILINE,
)  # fmt: skip
(PROGRAM,) = re.findall(r"```py\n(.*?)```", SECTION, re.DOTALL)


def test_its_commands_say_what_stands_below_them(place):
    write_prompts(place.folder / "prompts.jsonl", 3)
    assert len(STEPS) == 3
    for command, said in STEPS:
        _, *words = shlex.split(command)
        told = place.done("-m", "scheduler", *words, RAY_ADDRESS=place.nodes.address)[1]

        said = said.replace("…\n", "…").replace("worker 1:", "worker …:")  # or the other first
        pattern = ".*".join(map(re.escape, said.split("…")))
        assert re.fullmatch(pattern, told, re.DOTALL), (command, told)


def test_its_program_answers_each_row(place):
    before = (
        f"import ray.data\nray.init({place.nodes.address!r}, log_to_driver=False)\n"
        "rows = ray.data.from_items([{'id': n, 'text': f'text {n}'} for n in range(4)])\n"
        "def ours():\n    from scheduler import OpenAI\n"
        f"    return OpenAI(base_url={place.provider.url!r})\n"
    )
    program, changes = PROGRAM, {
        'ray.data.read_parquet("questions/")': "rows",
        "actors=4,": "actors=1, providers=ours, prices={'gpt-4o-mini': '1/2'},",
        'ds.write_parquet("answers/")': "json.dump(ds.take_all(), open('rows.json', 'w'))",
    }  # fmt: skip
    for ours, instead in changes.items():
        assert ours in program
        program = program.replace(ours, instead)
    place.done("-c", f"import json\n{before}{program}")

    rows = json.loads((place.folder / "rows.json").read_text())
    assert sorted(row["id"] for row in rows) == [0, 1, 2, 3]
    assert all(row["answer"] and row["error"] is None and row["cost_usd"] > 0 for row in rows)
    assert place.provider.bill()["calls"] == 4


def test_the_example_prints_what_its_docstring_says(tmp_path):
    path = ROOT / "examples" / "ray_data.py"
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=90, check=False, cwd=tmp_path
    )  # fmt: skip

    says = path.read_text().partition("You should see:\n\n")[2].partition('"""')[0]
    expected = [line.removeprefix("    ") for line in says.strip("\n").splitlines()]
    assert done.stdout.splitlines() == expected, done.stderr
