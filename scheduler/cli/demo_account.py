"""Do the provider, the ledger and the files agree after the demo?"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.cli.look import now_ms, opened
from scheduler.cli.output import plural, say, table
from scheduler.guards.plain import shell_word
from scheduler.money import format_usd

if TYPE_CHECKING:
    from scheduler.stats import Audit, SpendRow


@dataclass(slots=True)
class Seen:
    """What was observed from outside while the batch ran.

    Attributes:
        most_nusd: Per limit, the most that was spent and reserved in a window.
        limits_nusd: What the limits are.
        parks: How often the batch was seen to stop for want of money.
    """

    most_nusd: dict[str, int] = field(default_factory=dict)
    limits_nusd: dict[str, int | None] = field(default_factory=dict)
    parks: int = 0
    is_parked: bool = False
    parked_since_s: float = 0.0
    raised: bool = False

    def note(self, name: str, limit_nusd: int | None, used_nusd: int) -> None:
        """Note how much of a limit is taken."""
        self.limits_nusd[name] = limit_nusd
        self.most_nusd[name] = max(used_nusd, self.most_nusd.get(name, 0))

    def is_time_to_raise(self, after_s: float) -> bool:
        """Whether the batch waits again for a while, after it went on by itself once."""
        waited_s = time.monotonic() - self.parked_since_s
        return self.parks >= 2 and self.is_parked and not self.raised and waited_s > after_s


async def tell_account(requests: int, place: Path, url: str, code: int, seen: Seen) -> bool:
    """Compare everybody's numbers; tell them; returns whether they all agree."""
    if not (place / "results.jsonl").exists():
        say(f"error: the batch ended with exit code {code} before it wrote a result")
        return False
    async with opened(str(place / "demo.db")) as store:
        spend = await store.spend("model")
        audit = await store.audit(now_ms())
    with (place / "results.jsonl").open(encoding="utf-8") as file:
        results = sum(1 for _ in file)
    billed = await asyncio.to_thread(_billed, url)
    say("")
    rows, is_exact = account(requests, code, results, spend, audit, billed)
    print(table(("the account", "", ""), rows))
    print("\n" + table(("limit", "most spent + reserved", ""), limit_rows(seen)))
    file_name = shell_word(str(place / "demo.db"))
    say("")
    say(f"The files are in {place}. Look around:")
    say(f"  scheduler status --store {file_name}")
    say(f"  scheduler spend --by model --store {file_name}")
    return is_exact and all(verdict == "ok" for _, _, verdict in limit_rows(seen))


def limit_rows(seen: Seen) -> list[tuple[str, str, str]]:
    """Per limit that was set, the most that was ever taken of it."""
    rows = []
    for name, most in seen.most_nusd.items():
        limit = seen.limits_nusd[name]
        is_kept = limit is None or most <= limit
        rows.append((name, format_usd(most), "ok" if is_kept else "WRONG"))
    return rows


def _billed(url: str) -> dict[str, Any]:
    """The simulated provider's own count, which knows nothing of the ledger."""
    from urllib.request import ProxyHandler, build_opener

    base = url.removesuffix("/").removesuffix("/v1")
    with build_opener(ProxyHandler({})).open(f"{base}/billed", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def account(
    requests: int,
    code: int,
    results: int,
    spend: Sequence[SpendRow],
    audit: Audit,
    billed: dict[str, Any],
) -> tuple[list[tuple[str, str, str]], bool]:
    """Lines of the final account, and whether everything agrees."""
    posted = sum(row.posted_nusd for row in spend)
    reserved = sum(row.reserved_nusd for row in spend)
    checks = [
        ("results written", f"{results} of {requests}", results == requests and code == 0),
        ("the provider billed", format_usd(billed["billed_nusd"]), True),
        ("the ledger says", format_usd(posted), posted == billed["billed_nusd"]),
        ("still reserved", format_usd(reserved), reserved == 0),
        ("calls billed", str(billed["calls"]), billed["calls"] == requests),
        (
            "audit",
            f"{plural(audit.balances, 'balance')} recomputed, {len(audit.discrepancies)} off",
            not audit.discrepancies,
        ),
    ]
    rows = [(name, text, "ok" if is_fine else "WRONG") for name, text, is_fine in checks]
    return rows, all(is_fine for _, _, is_fine in checks)
