"""What is there of a cluster, and does it suffice? Pure.

>>> cluster = Cluster([Node("a1", "left", cpus=2), Node("b2", "right", cpus=1)], free_cpus=1.5)
>>> cluster.fits(0.5), cluster.fits(2), cluster.name_of("b2")
(3, 0, 'right')
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.errors import ConfigError

GRAINS = 10_000  # a CPU; what is less Ray does not count either
SHOWN = 6  # characters of a node's id


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster, or what Ray takes for one."""

    id: str
    host: str
    cpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The nodes that are alive, and how many of their CPUs nothing runs on."""

    nodes: Sequence[Node]
    free_cpus: float

    def fits(self, cpus_each: float) -> int:
        """How many workers of that size there may be room for; what runs beside may leave less."""
        each = round(cpus_each * GRAINS)
        whole = sum(round(node.cpus * GRAINS) // each for node in self.nodes)
        return min(whole, round(self.free_cpus * GRAINS) // each)

    def one_each(self, cpus_each: float) -> int:
        """One worker for each node that has room for one."""
        return max(1, sum(node.cpus >= cpus_each for node in self.nodes))

    def require_room(self, workers: int, cpus_each: float) -> None:
        """Refuse more workers than fit. Raises `ConfigError`."""
        if not cpus_each or (fit := self.fits(cpus_each)) >= workers:
            return
        have = f"{self.free_cpus:g} free CPUs on {_nodes(len(self.nodes))}"
        ask_less = f"ask for {fit}, " if fit else ""
        raise ConfigError(
            "--workers",
            f"of {workers} workers with {cpus_each:g} CPUs each {fit} fit into the cluster ({have}); "
            f"nothing was started. {ask_less[:1].upper()}{ask_less[1:]}"
            f"{'g' if ask_less else 'G'}ive each less (--cpus), add nodes, or start what fits and the "
            "rest as soon as there is room (--when-room)",
        )

    def require_shared(self, file: str, here: str) -> None:
        """Refuse a file for machines that do not share it.

        Args:
            file: The store, as it is told to people.
            here: The name of this machine.

        Raises:
            ConfigError: There are several nodes, or the only one is another machine than this.
        """
        where = ""
        if len(self.nodes) > 1:
            where = f"the cluster has {len(self.nodes)} nodes"
        elif self.nodes and self.nodes[0].host != here:
            where = f"the cluster's node is another machine ({self.nodes[0].host})"
        if where:
            raise ConfigError(
                "--store",
                f"{file} is a file, and {where}: a file cannot be shared between machines, each "
                "would spend the whole budget. Nothing was started. Name a database "
                "(postgresql://HOST/DB); 'scheduler move' brings the file's budgets, spend and queue "
                "there",
            )

    def name_of(self, node_id: str) -> str:
        """What people call a node: its host, and of several on one a part of its id, too."""
        hosts = Counter(node.host for node in self.nodes)
        for node in self.nodes:
            if node.id == node_id:
                return node.host if hosts[node.host] == 1 else f"{node.host}/{node_id[:SHOWN]}"
        return node_id[:SHOWN]


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"
