"""``pip install scheduler`` is another project: pip's own doing, in both orders."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.recipes.harness import ROOT

PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
AGAIN = ("install", "--force-reinstall", "--no-deps", "--no-index")


def run(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *words], capture_output=True, text=True, timeout=90, check=False, cwd="/"
    )


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Ours, and what else there is to lay in one folder with it."""
    folder = tmp_path_factory.mktemp("wheels")
    done = run(
        Path(sys.executable), *PIP, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT),
        "scheduler", "typeguard",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours, theirs, needed = (
        next(folder.glob(f"{name}-*.whl")) for name in ("llm_budget*", "scheduler", "typeguard")
    )
    return ours, theirs, needed


@pytest.fixture
def env(tmp_path, wheels):
    """A new environment, in which only the packages that ours needs are seen."""
    done = run(Path(sys.executable), "-m", "venv", str(tmp_path / "env"))
    assert done.returncode == 0, done.stderr
    python = tmp_path / "env" / "bin" / "python"
    (place,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (place / "seen.pth").write_text(sysconfig.get_path("purelib"))
    pip(python, *AGAIN, str(wheels[2]))
    return python


def pip(python: Path, *words: str) -> None:
    done = run(python, *PIP, *words)
    assert done.returncode == 0, done.stderr


def doctor(python: Path) -> tuple[int, str]:
    done = run(python.with_name("scheduler"), "doctor")
    return done.returncode, done.stdout + done.stderr


def test_theirs_after_ours_then_what_is_said_is_done(env, wheels):
    ours, theirs, _ = wheels
    pip(env, *AGAIN, str(ours))
    assert doctor(env)[0] == 0
    pip(env, *AGAIN, str(theirs))

    code, told = doctor(env)

    assert code == 3
    assert "__init__.py is another project's: scheduler 0." in told
    assert run(env, "-c", "import scheduler.config").returncode == 1
    assert "'pip uninstall scheduler', and then 'pip install --force-reinstall --no-deps" in told
    pip(env, "uninstall", "--yes", "scheduler")
    code, told = doctor(env)
    assert code == 3
    assert "__init__.py is missing, as after 'pip uninstall scheduler'" in told
    pip(env, *AGAIN, str(ours))
    code, told = doctor(env)
    assert code == 0
    assert "another project" not in told
    assert run(env, "-W", "error", "-c", "from scheduler import Budget").returncode == 0


def test_ours_after_theirs_works_and_warns_until_theirs_is_gone(env, wheels):
    ours, theirs, _ = wheels
    pip(env, *AGAIN, str(theirs))
    pip(env, *AGAIN, str(ours))

    done = run(env, "-c", "from scheduler import Budget; print(Budget('a', '$1').name)")

    assert done.stdout == "a\n"
    assert "RuntimeWarning: scheduler 0." in done.stderr
    code, told = doctor(env)
    assert code == 0
    assert "has the import name 'scheduler', too" in told
