"""The ground a suite runs on: its source, and a virtual environment with what it needs."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
import venv
from dataclasses import dataclass
from pathlib import Path

from tests.suites.catalogue import Suite

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".suites"  # sources and results
VENVS = ROOT / ".venv-suites"


class NoGround(Exception):
    """A suite cannot be run here."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a suite is run.

    Attributes:
        source: The root of its source.
        python: That of its environment.
        version: Of the package.
    """

    source: Path
    python: Path
    version: str


def make_ground(suite: Suite, checkout: Path | None) -> Ground:
    """Fetch a suite and install what it needs, as far as that was not done before.

    Args:
        suite: Which.
        checkout: Its source; None: the source distribution.

    Raises:
        NoGround: A command failed; with its last words.
    """
    source = checkout or _unpacked(suite)
    lacking = [path for path in suite.tests if not (source / path).exists()]
    if lacking:
        raise NoGround(f"{source} has no {', '.join(lacking)}")
    home = VENVS / (suite.name if checkout is None else f"{suite.name}-checkout")
    python = home / "bin" / "python"
    extras = f"[{','.join(suite.extras)}]" if suite.extras else ""
    if checkout is not None:
        wanted = ["--editable", f"{checkout}{extras}"]
    else:
        wanted = [f"{suite.package}{extras}=={_version_of(source, suite)}"]
    wanted += suite.needs
    stamp = home / ".installed"
    if not stamp.exists() or stamp.read_text() != "\n".join(wanted):
        print(f"  installing what {suite.name} needs", file=sys.stderr, flush=True)
        venv.create(home, with_pip=True, clear=True)
        _pip(python, "install", str(ROOT), "hatchling", *wanted)
        stamp.write_text("\n".join(wanted))
    # Ours anew each time. Not in place: our folder of tests would stand in the way of theirs.
    _pip(python, "install", "--no-deps", "--no-build-isolation", "--force-reinstall", str(ROOT))
    asked = f"import importlib.metadata; print(importlib.metadata.version({suite.package!r}))"
    return Ground(source, python, _run(str(python), "-c", asked).strip())


def _unpacked(suite: Suite) -> Path:
    """The source distribution, of the version that is installed here, or the newest."""
    try:
        version = importlib.metadata.version(suite.package)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    stem = suite.package.replace("-", "_")
    found = sorted(
        KEPT.glob(f"sources/{stem}-{version or '*'}"), key=lambda path: path.stat().st_mtime
    )
    if found:
        return found[-1]
    print(f"  fetching the source of {suite.package} {version}", file=sys.stderr, flush=True)
    pinned = f"{suite.package}=={version}" if version else suite.package
    archives = KEPT / "archives"
    _pip(Path(sys.executable), "download", "--no-deps", "--no-binary", suite.package,
         "--dest", str(archives), pinned)  # fmt: skip
    archive = max(archives.glob(f"{stem}-{version}*.tar.gz"), key=lambda path: path.stat().st_mtime)
    with tarfile.open(archive) as tar:
        tar.extractall(KEPT / "sources", filter="data")
    return KEPT / "sources" / archive.name.removesuffix(".tar.gz")


def _version_of(source: Path, suite: Suite) -> str:
    return source.name.removeprefix(suite.package.replace("-", "_") + "-")


def _pip(python: Path, *args: str) -> None:
    _run(str(python), "-m", "pip", args[0], "--quiet", "--disable-pip-version-check", *args[1:])


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise NoGround(f"{' '.join(command)[:300]}\n{words}")
    return done.stdout
