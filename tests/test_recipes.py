"""What docs/recipes.md says is what happens."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import httpx
import pytest

from tests import warm
from tests.warm import running_server

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "recipes.md").read_text()
RECIPES = {
    name: (program, output)
    for name, program, output in re.findall(
        r"^## ([^\n]*)\n(?:(?!^## ).)*?```python\n(.*?)```\n\n```text\n(.*?)```",
        PAGE,
        re.DOTALL | re.MULTILINE,
    )
}
NAMES = ["pandas", "polars", "Hugging Face datasets", "A notebook", "A script with threads"]

# As Jupyter has it: cells are run, one after another, while a loop is running.
NOTEBOOK = """
import ast, asyncio, inspect, sys

async def main():
    names = {"__name__": "__main__"}
    for cell in open(sys.argv[1]).read().split("# %%")[1:]:
        code = compile("#" + cell, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        if inspect.iscoroutine(result):
            await result
        await asyncio.sleep(0.01)

asyncio.run(main())
"""


def run(program: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, without a network."""
    path = folder / "recipe.py"
    path.write_text(program)
    words = [str(path)] if "# %%" not in program else ["-c", NOTEBOOK, str(path)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "PYTHONWARNINGS": "error"}
    return warm.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=60, check=False,
        cwd=folder, env=os.environ | offline | variables,
    )  # fmt: skip


def test_all_recipes_are_found():
    assert list(RECIPES) == NAMES
    assert len(RECIPES) == PAGE.count("```python")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_prints_what_stands_below_it(name, tmp_path):
    program, output = RECIPES[name]

    done = run(program, tmp_path)

    assert done.stdout == output, done.stderr
    assert done.returncode == 0
    if name not in NAMES[:3]:
        return
    again = run(program, tmp_path)  # by then all is answered: nothing is asked or paid
    assert again.returncode == 0, again.stderr
    assert set(re.findall(r"\d+ done|[$][\d.]+ spent", again.stdout)) == {"0 done", "$0.00 spent"}
    assert missing(again) == missing(done)


def missing(done: subprocess.CompletedProcess[str]) -> str:
    """The rows without an answer, in the end; without the amounts, which count from the start."""
    return done.stdout.splitlines()[-1].partition(" | ")[0]


def test_the_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)", PAGE):
        assert (ROOT / "docs" / target).exists()
    assert "## What is not promised" in (ROOT / "docs" / "reliability.md").read_text()


# Hugging Face datasets: what the page says of fingerprints and processes

DATASETS = RECIPES["Hugging Face datasets"][0].partition("if __name__")[0]


def installed(folder: Path) -> str:
    """A copy of the package where packages are installed: others are pickled by value."""
    place = folder / "site-packages"
    shutil.copytree(ROOT / "scheduler", place / "scheduler")
    return str(place)


def test_the_function_has_the_same_fingerprint_in_every_process(tmp_path):
    program = (
        DATASETS
        + """
from datasets.fingerprint import Hasher
first = Hasher.hash(label)
opened().set_limit("default", "$1")
label({"id": ["r1"], "text": ["Too loud."]})
assert Hasher.hash(label) == first
print(first)
"""
    )
    place = installed(tmp_path)

    first = run(program, tmp_path, PYTHONPATH=place)
    second = run(program, tmp_path, PYTHONPATH=place, PYTHONHASHSEED="7")

    assert first.stdout == second.stdout != "", first.stderr + second.stderr


def test_a_function_that_holds_a_scheduler_has_no_fingerprint(tmp_path):
    program = """
import scheduler
from datasets.fingerprint import Hasher
from scheduler import Simulated

s = scheduler.open(providers=Simulated())

def label(batch):
    return s.map([])

try:
    Hasher.hash(label)
except TypeError as error:
    print("cannot pickle" in str(error))
"""
    done = run(program, tmp_path, PYTHONPATH=installed(tmp_path))

    assert done.stdout == "True\n", done.stderr


def test_a_map_that_raises_leaves_nothing_in_the_cache_of_datasets(tmp_path):
    program = (
        DATASETS.replace('"5s"', '"1s"')
        + """
import pathlib
if __name__ == "__main__":
    Dataset.from_dict({"id": ["r1"] , "text": ["Too loud."]}).save_to_disk("reviews")
    reviews = load_from_disk("reviews")
    opened().pause("default")
    try:
        reviews.map(label, batched=True)
    except DeadlineExceeded:
        print(list(pathlib.Path("reviews").glob("cache-*")))
"""
    )
    done = run(program, tmp_path)

    assert done.stdout == "[]\n", done.stderr


def test_several_processes_open_the_same_file_by_themselves(tmp_path):
    program = (
        DATASETS.replace("$0.0007", "$1")
        + """
import asyncio
import os
from multiprocess import set_start_method

def label_and_tell(batch):
    return label(batch) | {"process": [os.getpid()] * len(batch["id"])}

if __name__ == "__main__":
    set_start_method("fork")
    ids = [f"r{n}" for n in range(40)]
    reviews = Dataset.from_dict({"id": ids, "text": [f"Review {id}" for id in ids]})
    for _ in range(2):
        labelled = reviews.map(
            label_and_tell, batched=True, batch_size=10, num_proc=2, load_from_cache_file=False
        )
        assert os.getpid() not in labelled["process"]
        print(len(set(labelled["process"])), labelled["error"][:] == [None] * 40)
    s = opened()
    spend = asyncio.run_coroutine_threadsafe(s.scheduler.store.spend("job"), s.scheduler.loop)
    (spent,) = spend.result()
    print(spent.name, spent.attempts, spent.reserved_nusd)
    try:
        reviews.map(label, batched=True, num_proc=2, load_from_cache_file=False)
    except scheduler.SchedulerClosed as error:
        print("forked" in str(error))
"""
    )
    assert run(DATASETS + "opened().close()", tmp_path).returncode == 0  # the file is there
    # Threads and forks: datasets' own business, of which Python from 3.12 on warns.
    done = run(program, tmp_path, PYTHONWARNINGS="default")

    assert done.stdout == "2 True\n2 True\nlabels-1 40 0\nTrue\n", done.stderr


# What the page says of keys


def test_what_failed_stays_failed_under_its_key_and_what_was_not_sent_does_not(tmp_path):
    program = """
import scheduler
from scheduler import CallFailed, Request, Simulated

def ask(key, fail, **options):
    provider = Simulated(fail=lambda *call: fail)
    with scheduler.open("sqlite:///scheduler.db", budgets="$1", providers=provider, **options) as s:
        request = Request.chat("sim-small", "Hi", max_tokens=5, key=key, job="j")
        (answer,) = s.map([request], return_exceptions=True)
        return type(answer).__name__, provider.bill.received

print(ask("a", "400"), ask("a", None), ask("a/2", None))
print(ask("b", None, max_cost="$0.000000001"), ask("b", None))
"""
    done = run(program, tmp_path)

    assert done.stdout == (
        "('ProviderRefused', 1) ('CallFailed', 0) ('Response', 1)\n"
        "('CostTooHigh', 0) ('Response', 1)\n"
    ), done.stderr


def test_polars_asks_elements_that_are_not_there():
    import polars as pl

    asked: list[str] = []

    def ask(text: str) -> str:
        asked.append(text)
        return text

    frame = pl.DataFrame({"text": ["a", "b"]}).lazy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions warn of it
        frame.select(pl.col("text").map_elements(ask)).collect()

    assert set(asked) > {"a", "b"}


CRASHING = """
import sys
import scheduler
from scheduler import OpenAI, Request
from scheduler.providers.simulated_bill import SIMULATED_PRICES

provider = OpenAI(base_url=sys.argv[1])
with scheduler.open(
    "sqlite:///scheduler.db", budgets="$1", providers=provider, prices=SIMULATED_PRICES,
    concurrency=8,
) as s:
    requests = (Request.chat("sim-small", f"{n}", max_tokens=5, key=str(n)) for n in range(200))
    for count, answer in enumerate(s.map(requests, ordered=True), 1):
        print(count, flush=True)
    print(s.stats().succeeded, flush=True)
"""


def test_killed_and_run_again_it_asks_only_for_what_has_no_answer(tmp_path):
    with running_server("--latency", "20ms") as url:
        words = [sys.executable, "-c", CRASHING, url]
        with warm.Popen(words, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
            assert process.stdout is not None
            while process.stdout.readline() != "50\n":
                assert process.poll() is None
            process.kill()
            answered = 50 + len(process.stdout.read().splitlines())

        done = warm.run(
            words, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
        )
        billed = httpx.get(f"{url.removesuffix('/v1')}/billed").json()["calls"]

    *_, last, asked = done.stdout.split()
    assert last == "200", done.stderr
    assert int(asked) <= 200 - answered
    assert billed <= 200 + 8  # what was in flight
