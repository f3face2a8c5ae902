"""Which suites there are: `catalogue.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Suite:
    """A project's own test suite, and what it takes to run it.

    Attributes:
        package: Its name at PyPI.
        clients: ``module:Class``: whose clients are wrapped.
        extras: Of the package that its tests need.
        needs: Other packages that its tests need.
        tests: Folders or files, in the source.
        ignore: What of it is left out.
        served: What of it needs a server that answers by the API's schema; ours does.
        args: For pytest.
        env: Variables for its environment.
        note: What is left out, and why; for the report.
    """

    name: str
    package: str
    clients: tuple[str, ...]
    extras: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    tests: tuple[str, ...] = ("tests",)
    ignore: tuple[str, ...] = ()
    served: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    note: str = ""


def read(text: str) -> dict[str, Suite]:
    """Read `catalogue.toml`.

    Raises:
        TypeError: It says something that a `Suite` has not.
    """
    suites = {}
    for name, table in tomllib.loads(text).items():
        lists = {key: tuple(value) for key, value in table.items() if isinstance(value, list)}
        suites[name] = Suite(name=name, **{"package": name, **table, **lists})
    return suites


def load() -> dict[str, Suite]:
    """All suites."""
    return read((HERE / "catalogue.toml").read_text())
