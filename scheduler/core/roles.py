"""What a process is there for, and what it leaves to others.

Who *waits* for a request hears at once that the key is missing here, as it would be of no use to wait for
somebody who may never come. What is put into the queue for whoever sends it waits for a process that
has the key, if one could come at all.
"""

from __future__ import annotations

from typing import Literal, get_args

from scheduler.core.intake import Intake
from scheduler.errors import ConfigError
from scheduler.stores.base import NewRequest

Role = Literal["client", "worker", "both"]
ROLES: tuple[str, ...] = get_args(Role)


def check_role(role: Role, new: NewRequest) -> None:
    """Refuse what a process of that role is not there for. Raises `ConfigError`."""
    if role == "worker":
        problem = "a worker takes in no requests, it sends those of others; nothing was queued"
        raise ConfigError("role", f"{problem}. Submit with role='client' or 'both'")
    if role == "client" and not new.lane.is_shared:
        raise ConfigError(
            "role",
            "a client sends nothing itself, and no other process could send this request: it "
            "needs a key, a store that keeps prompts, a provider that is known by its name and "
            "its URL, and may neither stream, nor fall back, nor be refused rather than wait. "
            "Nothing was queued",
        )


def keep_here(role: Role, intake: Intake, new: NewRequest) -> None:
    """Have it fail here, where its provider's key is missing, rather than wait for others to come."""
    if role == "both" and new.lane.provider in intake.keyless:
        new.lane = new.lane.as_private()


def check_key(intake: Intake, new: NewRequest) -> None:
    """Refuse what is sent neither here, for want of a key, nor by others. Raises `ConfigError`."""
    name = new.lane.provider
    if name in intake.keyless and not new.lane.is_shared:
        provider = intake.providers[name]
        where = provider.base_url or f"provider {name!r}"
        problem = f"is not set, and {where} needs a key; nothing was sent"
        raise ConfigError(provider.lacks, problem)
