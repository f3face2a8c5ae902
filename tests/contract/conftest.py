"""What ``make contract`` installs, in an environment of its own."""

from pathlib import Path

from tests.server.conftest import provider, start

__all__ = ["provider", "start"]  # pytest looks for fixtures here

SCHEMATHESIS = Path(__file__).parents[2] / ".venv-contract" / "bin" / "schemathesis"
collect_ignore_glob = [] if SCHEMATHESIS.exists() else ["test_*.py"]
