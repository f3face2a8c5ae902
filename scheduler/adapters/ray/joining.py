"""How does a command come to a Ray cluster, and what does it say where there is none?"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

from scheduler.adapters.ray.fitting import Cluster, Node
from scheduler.errors import ConfigError, brief
from scheduler.guards.plain import one_line

INSTALL = "pip install 'llm-budget-scheduler[ray]'"
CLIENT = "ray://"
LOCAL, AUTO = "local", "auto"
CLIENT_PORT, GCS_PORT = 10001, 6379
REACH_S = 5.0


def ray_module() -> Any:
    """Ray. Raises `ConfigError` where it is not installed."""
    try:
        return importlib.import_module("ray")
    except ImportError as exc:
        raise ConfigError(
            "ray", f"Ray is not installed here ({one_line(exc)}); nothing was started. {INSTALL}"
        ) from None


@contextlib.contextmanager
def joined(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster while the block lasts.

    What Ray itself would print is kept from stdout, where a command's data goes.

    Args:
        address: ``auto`` (the one that runs here, or RAY_ADDRESS names), ``HOST:PORT``,
            ``ray://HOST:PORT`` or ``local`` (one of its own, in this machine, for as long as this).

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    ray = ray_module()
    place = os.environ.get("RAY_ADDRESS") or address if address == AUTO else address
    _require_there(place)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if place == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options["include_dashboard"] = False
    with open(os.devnull, "w") as nowhere:
        shown = sys.stderr if os.environ.get("SCHEDULER_DEBUG", "") not in ("", "0") else nowhere
        with contextlib.redirect_stdout(shown):
            try:
                ray.init(address=place, **options)
            except Exception as exc:  # of many kinds, and of none in common
                raise _unreachable(place, exc) from None
            try:
                yield ray
            finally:
                ray.shutdown()


def _require_there(place: str) -> None:
    """Knock at an address, since Ray itself takes long to give up, and may end the process."""
    if place in (LOCAL, AUTO):
        return
    host, _, port = place.removeprefix(CLIENT).rstrip("/").rpartition(":")
    usual = CLIENT_PORT if place.startswith(CLIENT) else GCS_PORT
    if not host or not port.isdecimal():
        raise ConfigError(
            "--address",
            f"{brief(place)} is not auto, local, HOST:{GCS_PORT} or {CLIENT}HOST:{CLIENT_PORT} "
            f"(a port has to be named, usually {usual}); nothing was started",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except (OSError, OverflowError) as exc:
        raise _unreachable(place, exc) from None


def _unreachable(place: str, exc: Exception) -> ConfigError:
    if place == AUTO:
        return ConfigError(
            "--address",
            f"no Ray cluster runs here ({one_line(exc, 300)}); nothing was started. Begin one (ray start "
            "--head), name one (--address ray://HOST:10001, or RAY_ADDRESS), or take one for this "
            "command alone (--address local)",
        )
    return ConfigError(
        "--address",
        f"there is no Ray cluster that can be used at {brief(place)} ({one_line(exc, 300)}); nothing "
        "was started. Is it running, can its port be reached from here, and has it the same versions "
        "of Ray and Python?",
    )


def seen(ray: Any) -> Cluster:
    """What there is of the cluster now."""
    nodes = [
        Node(each["NodeID"], each["NodeManagerHostname"], each["Resources"].get("CPU", 0.0))
        for each in ray.nodes() if each["Alive"]
    ]  # fmt: skip
    return Cluster(nodes, ray.available_resources().get("CPU", 0.0))
