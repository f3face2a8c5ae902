"""Another project has the same import name: what is said when files of both are in one folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
THEIRS = {  # as `pip install scheduler` lays them
    "scheduler/__init__.py": '__version__ = "0.8.11"\nfrom scheduler.error import SchedulerError\n',
    "scheduler/error.py": "class SchedulerError(Exception): ...\n",
    "scheduler/prioritization.py": "",
    "scheduler/py.typed": "",
    "scheduler/threading/__init__.py": "",
}
ANOTHERS = {"scheduler/clocks/__init__.py": "", "scheduler/ticks.py": ""}  # of nobody we know


def install_ours(place: Path) -> None:
    shutil.copytree(
        ROOT / "scheduler",
        place / "scheduler",
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
    )
    files = [path.relative_to(place) for path in (place / "scheduler").rglob("*.py")]
    ours = [file for file in files if (ROOT / file).exists()]
    note(place, "llm_budget_scheduler", "0.1.0", ours)


def install_theirs(place: Path, name: str = "scheduler", files: dict[str, str] = THEIRS) -> None:
    for file, text in files.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(text)
    note(place, name, "0.8.11", [Path(file) for file in files])


def note(place: Path, name: str, version: str, files: list[Path]) -> None:
    """Leave what pip leaves."""
    info = place / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    rows = (f"{file.as_posix()},,{(place / file).stat().st_size}\n" for file in files)
    (info / "RECORD").write_text("".join(rows))


def uninstall_theirs(place: Path) -> None:
    for file in THEIRS:
        (place / file).unlink()
    shutil.rmtree(place / "scheduler-0.8.11.dist-info")


def run(*words: str, paths: tuple[Path, ...]) -> subprocess.CompletedProcess[str]:
    """Run Python with these folders, and what else is installed; not with what is merely linked."""
    places = [str(path) for path in paths] + [sysconfig.get_path("purelib")]
    return subprocess.run(
        [sys.executable, "-S", *words], capture_output=True, text=True, timeout=60, check=False,
        cwd=paths[0], env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
    )  # fmt: skip


def doctor(*paths: Path) -> tuple[int, str, str]:
    """Exit code, verdict and finding of ``scheduler doctor`` on how it is installed."""
    done = run("-W", "ignore", "-m", "scheduler", "doctor", "--json", paths=paths)
    (row,) = [row for row in json.loads(done.stdout) if row["name"] == "install"]
    return done.returncode, row["verdict"], row["finding"]


UNINSTALL = "'pip uninstall scheduler', and then 'pip install --force-reinstall --no-deps llm-bu"


def test_alone_it_says_nothing_and_the_doctor_says_where_it_is(tmp_path):
    install_ours(tmp_path)

    imported = run("-W", "error", "-c", "import scheduler; scheduler.Budget", paths=(tmp_path,))

    assert (imported.returncode, imported.stderr) == (0, "")
    assert doctor(tmp_path) == (0, "ok", f"llm-budget-scheduler 0.1.0 in {tmp_path / 'scheduler'}")


def test_installed_after_the_other_it_works_and_warns(tmp_path):
    install_theirs(tmp_path)
    install_ours(tmp_path)

    done = run("-c", "from scheduler import Budget; print(Budget)", paths=(tmp_path,))

    assert "scheduler.budget.Budget" in done.stdout
    assert done.stderr.startswith("<string>:1: RuntimeWarning: scheduler 0.8.11 in ")
    assert UNINSTALL in done.stderr
    code, verdict, finding = doctor(tmp_path)
    assert (code, verdict) == (0, "note")
    assert "scheduler 0.8.11" in finding
    assert UNINSTALL in finding
    told = run("-m", "scheduler", "prices", "--help", paths=(tmp_path,)).stderr
    assert told.count("RuntimeWarning") == 1


WAYS = [
    "import scheduler.adapters.web",
    "from scheduler.config import load_config",
    "from scheduler.errors import BudgetExceeded",
    "from scheduler.providers.openai import OpenAI",
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_uninstalled", [False, True])
def test_where_the_other_has_its_init_or_took_it_along_any_part_says_so(
    tmp_path, way, is_uninstalled
):
    install_ours(tmp_path)
    install_theirs(tmp_path)
    if is_uninstalled:
        uninstall_theirs(tmp_path)

    done = run("-c", way, paths=(tmp_path,))

    init = tmp_path / "scheduler" / "__init__.py"
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "scheduler.guards.installed.Mixed: llm-budget-scheduler cannot be imported. "
    )
    assert "Nothing was sent" in last
    if is_uninstalled:
        assert f"{init} is missing, as after 'pip uninstall scheduler'" in last
        assert "'pip install --force-reinstall --no-deps llm-budget-scheduler' brings back" in last
    else:
        assert f"{init} is another project's: scheduler 0.8.11 in {tmp_path}" in last
        assert UNINSTALL in last


@pytest.mark.parametrize("command", [["doctor"], ["run", "x.jsonl"], ["--help"], []])
@pytest.mark.parametrize("is_uninstalled", [False, True])
def test_then_every_command_says_so_in_one_line(tmp_path, command, is_uninstalled):
    install_ours(tmp_path)
    install_theirs(tmp_path)
    if is_uninstalled:
        uninstall_theirs(tmp_path)

    words = ["-c", "import sys; from scheduler.__main__ import main; sys.exit(main())", *command]
    done = run(*words, paths=(tmp_path,))

    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: llm-budget-scheduler cannot be imported. ")


def test_the_doctor_sees_projects_that_nobody_knows_and_those_in_other_folders(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    install_ours(here)
    install_theirs(here, "cron_scheduler", ANOTHERS)
    install_theirs(there)

    code, verdict, finding = doctor(here, there)

    assert (code, verdict) == (0, "note")
    assert f"cron_scheduler 0.8.11 in {here}" in finding
    assert f"scheduler 0.8.11 in {there}" in finding
    assert "'pip uninstall cron_scheduler scheduler'" in finding


def test_the_doctor_names_files_that_are_missing_or_cut(tmp_path):
    install_ours(tmp_path)
    (tmp_path / "scheduler" / "admission" / "notices.py").write_text("")
    (tmp_path / "scheduler" / "adapters" / "web.py").unlink()
    program = "from scheduler.cli.mixture import look; print(*look())"

    done = run("-c", program, paths=(tmp_path,))

    assert done.stdout.startswith("False 2 files missing or changed: "), done.stderr
    assert "scheduler/adapters/web.py" in done.stdout
    assert "'pip install --force-reinstall --no-deps llm-budget-scheduler' brings" in done.stdout


def test_looking_costs_an_import_nothing_heavy(tmp_path):
    install_ours(tmp_path)
    program = "import sys, scheduler; print('importlib.metadata' in sys.modules)"

    assert run("-c", program, paths=(tmp_path,)).stdout == "False\n"
