"""Several gateways on one database are one: one budget, the same tokens, whoever of them dies."""

from __future__ import annotations

import json
import time
from functools import partial

import pytest

from scheduler.budget import Budget
from tests.postgres.database import Database
from tests.processes.harness import check_ledger, server, wait_for
from tests.server.conftest import ASKED, CEILING_USD, PRICE, Start
from tests.server.test_ends import asking, heard

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(180)]

EACH = 20
COST_USD, LEASE_MS = 0.01, 3_000
ANSWERS = ("--output-tokens", "10", "--output-sigma", "0", "--price", PRICE)
# The command with a shorter lease, so that the test need not wait for half a minute.
BRISK = (
    "import sys; from scheduler.stores.postgres.store import PostgresStore;"
    f" PostgresStore.lease_ms = {LEASE_MS}; from scheduler.cli.app import main;"
    " sys.argv[0] = 'scheduler'; main()"
)


@pytest.fixture
def base(url):
    return Database(url)


@pytest.fixture
def start(tmp_path, url):
    made = Start(tmp_path, url, ("-c", BRISK))
    yield partial(made, budget="")
    made.end()


def checked(base, provider, limit_usd):
    """What is posted and reserved, which is never above the limit nor below the bill."""
    posted, reserved = base.balance("default")
    assert posted + reserved <= limit_usd * 1e9
    check_ledger(base, provider)
    return posted / 1e9, reserved / 1e9


def parked_at(base):
    """How many wait in each process that has any."""
    return [n for (n,) in base(
        "SELECT count(*) FROM requests r JOIN lanes l ON l.id = r.lane_id"
        " WHERE r.state IN ('parked', 'queued') GROUP BY l.worker_id"
    )]  # fmt: skip


@pytest.mark.parametrize("notify", ["on", "off"])
def test_they_share_a_budget_to_its_last_cent_and_all_notice_a_raise(url, start, notify):
    limit_usd, base = 0.25, Database(f"{url}&notify={notify}")
    base.define(Budget("default", f"${limit_usd}"))
    with server("--latency", "150ms", *ANSWERS) as provider:
        both = [start(provider) for _ in range(2)]
        lines = [
            asking(each, {**ASKED, "stream": number % 4 == 0}, x_scheduler_wait="forever")
            for number in range(EACH) for each in both
        ]  # fmt: skip

        def is_spent():
            posted_usd, reserved_usd = checked(base, provider, limit_usd)
            return reserved_usd == 0 and posted_usd + CEILING_USD > limit_usd

        wait_for(is_spent, "all of it to be used")
        assert provider.billed_nusd() <= limit_usd * 1e9
        held = parked_at(base)
        assert len(held) == 2, "one of them has nobody that waits"
        assert sum(held) == 2 * EACH - provider.bill()["calls"]

        both[0].cli("budget", "set", "default", "$100")
        for line in lines:
            assert heard(line).startswith(b"HTTP/1.1 200")
            line.close()
        wait_for(lambda: base.balance("default")[1] == 0, "all to be settled")
        assert provider.bill()["calls"] == 2 * EACH
        assert base.balance("default")[0] == provider.billed_nusd() == 2 * EACH * COST_USD * 1e9
    assert base.states() == {"succeeded": 2 * EACH}
    assert base.audit().discrepancies == ()


def test_one_that_is_killed_loses_no_money_and_the_other_goes_on(base, start):
    limit_usd = 0.45
    base.define(Budget("default", f"${limit_usd}"))
    with server("--latency", "1s", *ANSWERS) as provider:
        dying, other = start(provider), start(provider)
        lost = [asking(dying, x_scheduler_wait="forever") for _ in range(3)]
        wait_for(lambda: base.in_flight() == 3, "three under way at the one")
        lines = [asking(other, x_scheduler_wait="forever") for _ in range(3)]
        wait_for(lambda: base.in_flight() == 4, "one under way at the other")
        lost += [asking(dying, x_scheduler_wait="forever") for _ in range(2)]
        wait_for(lambda: sum(parked_at(base)) == 4, "two to wait at each")
        assert len(parked_at(base)) == 2
        dying.kill()
        for line in lost:
            line.close()

        for line in lines:  # what the dead one had under way keeps counting meanwhile
            checked(base, provider, limit_usd)
            assert heard(line).startswith(b"HTTP/1.1 200")
            line.close()
        wait_for(lambda: not base.in_flight() and not parked_at(base), "the dead one's to be ended")
        posted_usd, reserved_usd = checked(base, provider, limit_usd)
        assert (posted_usd, reserved_usd) == pytest.approx((3 * COST_USD, 3 * CEILING_USD))
        assert provider.bill()["calls"] == 6  # of five of the dead one's, three had left

        while other.ask(x_scheduler_wait="0").status == 200:
            checked(base, provider, limit_usd)
        assert checked(base, provider, limit_usd)[0] == pytest.approx(0.06)
        other.cli("budget", "set", "default", "$1")
        assert other.ask().status == 200
    assert base.audit().discrepancies == ()


def test_a_token_made_once_is_taken_by_all_until_it_is_revoked(base, start):
    base.define(Budget("default", "$1"), Budget("team", "$1"))
    with server(*ANSWERS) as provider:
        both = [start(provider) for _ in range(2)]
        told = json.loads(both[0].cli("token", "create", "ann", "--budget", "team", "--json"))
        bearer = {"authorization": f"Bearer {told['token']}"}

        assert [each.ask(**bearer).status for each in both] == [200, 200]
        settled = (2 * COST_USD * 1e9, 0)  # an answer goes out before its cost is on the disk
        wait_for(lambda: base.balance("team") == settled, "what they cost")
        assert base.balance("default") == (0, 0)
        # What each made for itself is nothing to the other.
        crossed = {"authorization": f"Bearer {both[0].token}"}
        assert [each.ask(**crossed).status for each in both] == [200, 401]

        both[1].cli("token", "revoke", "ann")
        time.sleep(1.1)  # as long as it may still be taken
        assert [each.ask(**bearer).status for each in both] == [401, 401]
