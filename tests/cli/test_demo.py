import json
import re
import subprocess
import sys

import httpx
import pytest

from scheduler.cli.demo import write_prompts
from scheduler.cli.demo_account import Seen, account, limit_rows
from scheduler.stats import Audit, Discrepancy, SpendRow
from tests import warm

SPEND = [SpendRow("sim-small", 50, 400, 0, 0, 900), SpendRow("sim-large", 10, 600, 0, 0, 100)]
CLEAN = Audit(2, 60)
BILLED = {"billed_nusd": 1000, "calls": 60}


def test_the_demo_writes_the_same_valid_batch_file_every_time(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"

    write_prompts(first, 300)
    write_prompts(second, 300)

    assert first.read_bytes() == second.read_bytes()
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    assert len({line["custom_id"] for line in lines}) == 300
    assert {line["body"]["model"] for line in lines} == {"sim-small", "sim-large"}
    assert all(line["method"] == "POST" and line["body"]["max_tokens"] for line in lines)


def test_an_account_in_which_all_agree_is_exact():
    rows, is_exact = account(60, 0, 60, SPEND, CLEAN, BILLED)

    assert is_exact
    assert {row[2] for row in rows} == {"ok"}


OFF = Audit(2, 60, (Discrepancy("default", "$1", None, 0, "posted", 1, 2),))


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"billed": {"billed_nusd": 1001, "calls": 60}}, "the ledger says"),
        ({"billed": {"billed_nusd": 999, "calls": 60}}, "the ledger says"),
        ({"billed": {"billed_nusd": 1000, "calls": 61}}, "calls billed"),
        ({"results": 59}, "results written"),
        ({"code": 1}, "results written"),
        ({"spend": [*SPEND, SpendRow("x", 1, 0, 5, 5, 0)]}, "still reserved"),
        ({"audit": OFF}, "audit"),
    ],
)
def test_an_account_in_which_one_number_is_off_is_not_exact(change, wrong):
    given = {"requests": 60, "code": 0, "results": 60, "spend": SPEND, "audit": CLEAN,
             "billed": BILLED}  # fmt: skip

    rows, is_exact = account(**{**given, **change})

    assert not is_exact
    assert [name for name, _, verdict in rows if verdict == "WRONG"] == [wrong]


def test_the_demo_shows_parking_a_reset_a_raise_and_an_exact_account(tmp_path):
    words = [sys.executable, "-m", "scheduler", "demo", "--fast", "--dir", str(tmp_path / "demo")]

    done = warm.run(words, capture_output=True, text=True, timeout=90)

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"parked: budget 'default': .* missing of .*; resumes ", done.stderr)
    assert "goes on by itself" in done.stderr
    assert "$ scheduler budget set default" in done.stderr
    assert re.search(r"default: .* → ", done.stderr)
    assert re.search(r"results written\s+120 of 120\s+ok", done.stdout)
    assert re.search(r"audit\s.*0 off\s+ok", done.stdout)
    assert "WRONG" not in done.stdout
    assert len((tmp_path / "demo" / "results.jsonl").read_text().splitlines()) == 120
    assert re.findall(r"the (?:ledger says|provider billed)\s+(\S+)", done.stdout)[0]


def test_the_demo_does_not_write_into_a_folder_with_files(cli, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")

    done = cli("demo", "--fast", "--dir", tmp_path)

    assert done.exit_code == 3
    assert "not an empty folder" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["mine.txt"]


def test_a_limit_that_was_passed_is_told():
    seen = Seen()
    for name, limit, used in (("a", 10, 10), ("a", 10, 2), ("b", 10, 11), ("b", 10, 3),
                              ("c", None, 99)):  # fmt: skip
        seen.note(name, limit, used)

    verdicts = {name: verdict for name, _, verdict in limit_rows(seen)}
    assert verdicts == {"a": "ok", "b": "WRONG", "c": "ok"}


def test_a_demo_that_is_asked_to_end_leaves_no_process_behind(tmp_path):
    folder = tmp_path / "demo"
    words = [sys.executable, "-m", "scheduler", "demo", "--dir", str(folder)]
    with warm.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        url = next(re.search(r"listens at (\S+)", line)[1] for line in process.stderr
                   if "listens at" in line)  # fmt: skip
        process.terminate()
        process.stderr.read()

    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)
