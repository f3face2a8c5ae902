"""What serving needs beyond the package itself."""

from __future__ import annotations

from importlib.util import find_spec

from scheduler.errors import ConfigError

INSTALL = "pip install 'llm-budget-scheduler[server]'"


def check() -> None:
    """Raises `ConfigError`, with the command that helps, where something is missing."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError("server", f"needs {' and '.join(missing)}: {INSTALL}")
