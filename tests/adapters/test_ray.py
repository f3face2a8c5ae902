"""What of Ray needs no Ray: counting, telling, and a launcher on a cluster of pretence."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import sys
import types

import pytest

from scheduler.adapters.ray import launcher as launching
from scheduler.adapters.ray.actor import SchedulerWorker
from scheduler.adapters.ray.fitting import Cluster, Node
from scheduler.adapters.ray.fleet import Counts, Echo, Ended, Fleet, Member, State, Told
from scheduler.adapters.ray.joining import joined
from scheduler.adapters.ray.launcher import Launcher, Plan
from scheduler.errors import ConfigError

pytestmark = pytest.mark.anyio

# What fits


@pytest.mark.parametrize(
    ("cpus", "free", "each", "fit"),
    [
        ([2, 2], 4, 1, 4),
        ([1.5, 1.5], 3, 1, 2),  # none has a place across two nodes
        ([1, 1], 0.5, 0.25, 2),  # others are there already
        ([1], 1, 0.1, 10),  # and not 9, as floats have it
        ([0], 0, 0.25, 0),
        ([], 0, 0.25, 0),
    ],
)
def test_so_many_workers_fit(cpus, free, each, fit):
    cluster = Cluster([Node(str(n), str(n), cpus=count) for n, count in enumerate(cpus)], free)

    assert cluster.fits(each) == fit
    cluster.require_room(fit, each)
    cluster.require_room(1_000, 0)  # that ask for nothing
    with pytest.raises(ConfigError, match=f"of {fit + 1} workers .* {fit} fit") as refused:
        cluster.require_room(fit + 1, each)
    assert ("Ask for" in str(refused.value)) == (fit > 0)


def test_a_file_is_for_one_node_that_is_this_machine():
    here, there = Node("1", "here"), Node("2", "there")
    Cluster([here], 1).require_shared("f.db", "here")
    with pytest.raises(ConfigError, match=r"f\.db is a file, and the cluster has 2 nodes"):
        Cluster([here, there], 1).require_shared("f.db", "here")
    with pytest.raises(ConfigError, match=r"node is another machine \(there\)"):
        Cluster([there], 1).require_shared("f.db", "here")


def test_nodes_are_called_by_their_host_and_of_several_on_one_by_their_id_too():
    cluster = Cluster([Node("aaaaaaaa", "a"), Node("bbbbbbbb", "b"), Node("cccccccc", "b")], 1)

    names = [cluster.name_of(each) for each in ("aaaaaaaa", "bbbbbbbb", "cccccccc", "gone00000")]
    assert names == ["a", "b/bbbbbb", "b/cccccc", "gone00"]
    assert Cluster([Node("1", "a", 0), Node("2", "b", 1)], 1).one_each(0.5) == 1


# How they are


def told(life, counts=None):
    return Told(life, "node", 7, counts or Counts(), (), 0)


def test_a_member_adds_up_what_its_lives_did():
    member = Member(3)
    assert member.hears(told("a", Counts(5, 1, 2, 9, 100, 50)), "left") == ""
    assert member.is_lost() == "worker 3 on left is lost; Ray starts it again"
    assert member.is_lost() == ""
    assert member.counts == Counts(5, 1, 0, 0, 100, 50)

    assert member.hears(told("b"), "right") == "worker 3 is up again on right (restart 1)"
    assert member.hears(told("b", Counts(2, 0, 1, 4, 10, 5)), "right") == ""
    assert member.counts == Counts(7, 1, 1, 4, 110, 55)
    member.ends(Ended(0, "", Counts(3, 0, 0, 0, 20, 0)))
    assert member.counts == Counts(8, 1, 0, 0, 120, 50)
    assert member.hears(told("c"), "right") == ""
    assert member.state is State.ENDED


def test_one_that_was_killed_keeps_what_it_told():
    member = Member(1)
    member.hears(told("a", Counts(5, 0, 2, 9, 100, 50)), "left")
    member.is_lost()
    member.ends(Ended(0))
    assert member.counts.succeeded == 5


def test_a_fleet_is_told_in_a_line():
    up, away, lost, done = members = [Member(n) for n in range(4)]
    up.hears(told("a", Counts(1200, 1, 3, 40, 1_500_000_000)), "left")
    lost.hears(told("b", Counts(3, 0, 0, 50, 0)), "left")
    lost.is_lost()
    lost.hears(told("c"), "right")
    lost.is_lost()
    done.hears(told("d", Counts(4)), "left")
    done.ends(Ended(4, "no key"))
    fleet = Fleet(members)

    assert fleet.as_line() == (
        "1 of 4 up (left: 1) · 1 waits for a place · 1 is being started again · 1 ended · 1 restart"
        " · 1,207 succeeded · 1 failed · 3 running · 40 wait · $1.50 spent"
    )
    assert fleet.in_state(State.WAITING) == [away]
    assert (fleet.exit, Fleet([up]).exit) == (4, 0)
    assert Fleet([Member(1)]).as_sum("3s") == "1 workers · 0 succeeded · $0.00 spent · in 3s"


def test_the_worst_end_of_all_is_the_end_of_the_fleet():
    def ended(*codes):
        members = [Member(n) for n in range(len(codes))]
        for member, code in zip(members, codes, strict=True):
            member.ends(Ended(code))
        return Fleet(members).exit

    assert [ended(0, 0), ended(0, 75), ended(75, 1), ended(3, 1), ended(3, 4), ended(4, 130, 0)] == [
        0, 75, 1, 3, 4, 130,
    ]  # fmt: skip


def test_what_all_say_is_said_once_for_a_while():
    said = []
    echo = Echo(said.append)
    echo.hear(1, "parked 12: no money", 0)
    echo.hear(2, "parked 13: no money", 1)
    echo.hear(2, "something else", 1)
    echo.hear(2, "parked 9: no money", 59)
    echo.hear(3, "parked 9: no money", 61)
    assert said == [
        "worker 1: parked 12: no money", "worker 2: something else", "worker 3: parked 9: no money",
    ]  # fmt: skip


# A cluster of pretence


class Gone(Exception):
    """As Ray's errors."""


class Failed(Gone):
    cause = ValueError("a bug")


class Died(Gone):
    pass


class Method:
    def __init__(self, actor, name):
        self.actor, self.name = actor, name

    def options(self, **options):
        return self

    def remote(self, *args):
        return self.actor.ask(self.name, args, retries=self.name == "run")


class Actor:
    """As Ray's: restarted when it dies, its work with it."""

    def __init__(self, ray, options):
        self.ray, self.options = ray, options
        self.is_killed, self.has_place = False, asyncio.Event()
        self.has_place.set()
        self.instance, self.deaths = SchedulerWorker(), asyncio.Event()
        self.run, self.told, self.stop = (Method(self, each) for each in ("run", "told", "stop"))

    def die(self, *, returns=True):
        self.has_place.clear()
        self.instance = SchedulerWorker()
        self.deaths.set()
        self.deaths = asyncio.Event()
        if returns:
            self.has_place.set()

    def kill(self):
        self.is_killed = True
        self.deaths.set()
        self.has_place.set()

    def ask(self, name, args, retries):
        args = pickle.loads(pickle.dumps(args))  # all of it goes to another machine
        return asyncio.ensure_future(self._ask(name, args, retries))

    async def _ask(self, name, args, retries):
        while True:
            if not self.has_place.is_set() and not retries:
                raise Gone("unavailable")
            await self.has_place.wait()
            if self.is_killed:
                raise Died("killed")
            doing = asyncio.ensure_future(getattr(self.instance, name)(*args))
            dying = asyncio.ensure_future(self.deaths.wait())
            await asyncio.wait([doing, dying], return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                dying.cancel()
                return doing.result()
            doing.cancel()
            if self.is_killed:
                raise Died("killed")
            if not retries:
                raise Gone("unavailable")


class Ray:
    """As the module."""

    exceptions = types.SimpleNamespace(RayError=Gone, RayTaskError=Failed, RayActorError=Died)

    def __init__(self):
        self.actors = []

    def remote(self, kind):
        assert kind is SchedulerWorker
        return types.SimpleNamespace(options=self._options)

    def _options(self, **options):
        self.actors.append(Actor(self, options))
        return types.SimpleNamespace(remote=lambda: self.actors[-1])

    def kill(self, actor):
        actor.kill()

    def nodes(self):
        node = {
            "NodeID": "n1",
            "NodeManagerHostname": "host",
            "Alive": True,
            "Resources": {"CPU": 4},
        }
        return [node, {**node, "NodeID": "n0", "Alive": False}]

    def available_resources(self):
        return {"CPU": 4.0}


LEFT = []  # of the work of all, here and there


class Work:
    """Does one thing after another; pickled by its name."""

    def __init__(self, *results):
        self.results = list(results)

    def begin(self):
        return Doing(self.results)


class Doing:
    def __init__(self, results):
        self.stops, self.done, self.results = 0, 0, results
        self.has_begun = False

    async def run(self):
        if self.results and LEFT:
            result = LEFT.pop()
            if isinstance(result, Exception):
                raise result
            return result
        self.has_begun = True
        while not self.stops:
            await asyncio.sleep(0.01)
            self.done += 1
        return Ended(0, "", Counts(self.done))

    def stop(self):
        self.stops += 1

    def counts(self):
        return Counts(self.done)

    def said(self, heard):
        return (("begins",) if not heard else ()), 1


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setattr(launching, "LOOK_S", 0.02)
    monkeypatch.setattr(launching, "FIRST_AGAIN_S", 0.02)
    monkeypatch.setattr(launching, "SETTLING_S", 0.2)
    monkeypatch.setattr("scheduler.adapters.ray.actor._node_id", lambda: "n1")
    LEFT.clear()
    return Ray()


@contextlib.asynccontextmanager
async def running(ray, work, said, **plan):
    plan = Plan(**{"workers": 2, "cpus": 0.25, "grace_s": 60, "tell_s": 60} | plan)
    launcher = Launcher(ray, work, plan, said.append)
    task = asyncio.create_task(launcher.run())
    yield launcher, task
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def test_workers_are_started_anywhere_and_end_when_told_to(cluster):
    said = []
    async with running(cluster, Work(), said) as (launcher, task):
        await until(lambda: len(launcher.fleet.in_state(State.UP)) == 2 and len(said) > 1)
        launcher._interrupted(2)
        fleet = await task

    options = cluster.actors[0].options
    assert options["scheduling_strategy"] == "SPREAD"
    assert (options["max_restarts"], options["max_task_retries"]) == (-1, -1)
    assert (options["num_cpus"], options["name"]) == (0.25, "scheduler-worker-1")
    assert [each.ended.exit for each in fleet.members] == [0, 0]
    assert all(each.is_killed for each in cluster.actors)
    assert said.count("worker 1: begins") + said.count("worker 2: begins") == 1  # of both
    assert any(each.startswith("2 of 2 up (host: 2)") for each in said)
    assert said[-1] == "stopping 2 workers; what waits stays in the store"


async def test_one_that_dies_goes_on_elsewhere_and_its_work_is_counted(cluster):
    said = []
    async with running(cluster, Work(), said, workers=1) as (launcher, task):
        (member,) = launcher.fleet.members
        await until(lambda: member.counts.succeeded > 3)
        before = member.counts.succeeded
        cluster.actors[0].die(returns=False)
        await until(lambda: member.state is State.LOST)
        cluster.actors[0].has_place.set()
        await until(lambda: member.restarts == 1 and member.counts.succeeded > before)
        launcher._interrupted(15)
        fleet = await task

    assert "worker 1 on host is lost; Ray starts it again" in said
    assert "worker 1 is up again on host (restart 1)" in said
    assert fleet.exit == 0


async def test_one_that_comes_back_while_all_are_told_to_stop_is_told_too(cluster):
    async with running(cluster, Work(), [], workers=1) as (launcher, task):
        (member,) = launcher.fleet.members
        await until(lambda: member.state is State.UP)
        cluster.actors[0].instance.stop = asyncio.Event().wait  # it dies before it hears
        launcher._interrupted(15)
        await asyncio.sleep(0)
        cluster.actors[0].die()
        fleet = await asyncio.wait_for(task, 60)

    assert fleet.exit == 0


async def test_one_without_a_place_has_nothing_to_finish(cluster):
    said = []
    async with running(cluster, Work(), said, workers=2, grace_s=3) as (launcher, task):
        await until(lambda: len(cluster.actors) == 2)
        cluster.actors[1].has_place.clear()
        cluster.actors[1].ask = lambda *a, **k: asyncio.ensure_future(asyncio.Event().wait())
        await until(lambda: launcher.fleet.members[0].state is State.UP)
        launcher._interrupted(15)
        fleet = await asyncio.wait_for(task, 60)

    assert cluster.actors[1].is_killed
    assert fleet.members[0].ended.exit == 0


async def test_what_may_pass_is_tried_again_and_what_only_a_person_can_mend_is_not(cluster):
    said = []
    LEFT.extend([
        Ended(4, "no key"), Ended(3, "the database is away", is_final=False), Failed("a bug")
    ])  # fmt: skip
    async with running(cluster, Work("fails"), said, workers=1) as (_, task):
        fleet = await asyncio.wait_for(task, 60)

    assert fleet.exit == 4
    told = [each for each in said if each.startswith("worker 1: ") and not each.endswith("begins")]
    assert told == [
        "worker 1: ValueError: a bug. It begins again in 0s",
        "worker 1: the database is away. It begins again in 0s",
        "worker 1: has ended with 4: no key",
    ]


async def test_one_that_does_not_end_is_ended_and_says_so(cluster):
    said = []
    async with running(cluster, Work(), said, workers=1, grace_s=0.1) as (launcher, task):
        await until(lambda: launcher.fleet.members[0].state is State.UP)
        cluster.actors[0].instance.stop = lambda: asyncio.sleep(0)
        launcher._interrupted(15)
        fleet = await asyncio.wait_for(task, 60)

    assert fleet.exit == 130
    assert "did not end when it was told to" in said[-1]
    assert cluster.actors[0].is_killed


async def test_one_that_can_have_no_process_ends(cluster):
    said = []
    LEFT.append(Gone("Failed to set up its environment.\nno such package"))
    async with running(cluster, Work("fails"), said, workers=1) as (_, task):
        fleet = await asyncio.wait_for(task, 60)

    assert fleet.exit == 1
    assert said[-1] == "worker 1: has ended with 1: cannot run: no such package"


async def test_a_signal_in_the_end_changes_nothing(cluster):
    said = []
    LEFT.append(Ended(0))
    async with running(cluster, Work("ends"), said, workers=1) as (launcher, task):
        await asyncio.wait_for(task, 60)
        launcher._interrupted(15)
    assert not any("stopping" in each for each in said)


# Joining


def test_that_ray_is_missing_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(
            ConfigError, match=r"Ray is not installed here .*llm-budget-scheduler\[ray\]"
        ),
        joined("auto"),
    ):
        pass


def pretended(monkeypatch, init=lambda **options: None):
    made = types.SimpleNamespace(init=init, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return made


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("auto", "no Ray cluster runs here"),
        ("nonsense", "is not auto, local, HOST:6379"),
        ("ray://host", "is not auto, local, HOST:6379"),
        ("127.0.0.1:1", "no Ray cluster that can be used at '127.0.0.1:1'"),
        ("ray://127.0.0.1:1", "no Ray cluster that can be used at 'ray://127.0.0.1:1'"),
        ("127.0.0.1:99999999", "no Ray cluster that can be used"),
    ],
)
def test_that_there_is_no_cluster_is_said_at_once(monkeypatch, address, words):
    def init(**options):
        raise ConnectionError("nobody\nthere")

    pretended(monkeypatch, init)
    with pytest.raises(ConfigError, match=words) as refused, joined(address):
        pass
    assert "nothing was started" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_ray_prints_does_not_come_to_stdout(monkeypatch, capsys):
    seen = []
    pretended(monkeypatch, lambda **options: seen.append(options))
    with joined("local"):
        print("(raylet) something")
    print("data")

    assert capsys.readouterr() == ("data\n", "")
    assert seen[0]["address"] == "local"
    assert seen[0]["log_to_driver"] is False
