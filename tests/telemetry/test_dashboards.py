"""The dashboard and the alerts name nothing but what is really exported, under labels that it has."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from scheduler import Budget, Scheduler
from scheduler.errors import CallFailed
from scheduler.stats import Unserved, WorkerStatus
from tests.conftest import ask
from tests.telemetry.test_prometheus import Streaming

pytestmark = pytest.mark.anyio
DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus-rules.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
DOCS = (DEPLOY.parents[1] / "docs" / "observability.md").read_text()


def expressions():
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]
    for rule in ALERTS:
        yield rule["alert"], rule["expr"], " ".join(rule["annotations"].values())


async def exported(monkeypatch):
    """Every series there is, of a scheduler to which everything has happened: name to labels."""
    budgets = Budget("team", "$0.000001/day,9 requests/day,900 tokens/day")
    async with Scheduler(budgets=budgets, providers=Streaming()) as s:
        metrics = s.metrics()
        await s.run(ask(cost=900, ceiling=800, stream=True))
        with pytest.raises(CallFailed):
            await s.run(ask(fail=CallFailed("torn"), ceiling=50))
        waits = s.submit(ask(ceiling=90))
        while waits.parked is None:
            await asyncio.sleep(0.01)

        async def unserved(now_ms, job=None):
            return [Unserved("openai", "url", 3)]

        async def workers(now_ms):
            return [WorkerStatus(1, "h", 1, {}, frozenset(), 1, 0, 0, 0, True)]

        monkeypatch.setattr(s.store, "unserved", unserved)
        monkeypatch.setattr(s.store, "workers", workers)
        text = (await metrics.text()).decode()
        waits.cancel()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def test_every_metric_that_is_named_is_exported_and_has_the_labels(monkeypatch):
    found = await exported(monkeypatch)

    for where, expr, told in expressions():
        names = set(re.findall(r"\bscheduler_\w+", expr))
        assert names, where
        assert names <= found.keys(), (where, names - found.keys())
        labels = set().union(*(found[name] for name in names))
        wanted = {
            x.strip() for group in re.findall(r"by \(([^)]*)\)", expr) for x in group.split(",")
        }
        wanted |= set(re.findall(r"(\w+)=~?\"", expr))
        wanted |= set(re.findall(r"\{\{ *(\w+) *\}\}", told))
        wanted |= set(re.findall(r"\$labels\.(\w+)", told)) - {"instance"}
        assert wanted - {"le"} <= labels, (where, wanted - labels)


async def test_every_metric_that_is_exported_is_documented_and_no_other(monkeypatch):
    def family(name):
        return re.sub(r"_(bucket|sum|count)$", "", name)

    found = {family(name) for name in await exported(monkeypatch)}
    documented = {family(name) for name in re.findall(r"`(scheduler_\w+?)(?:\{[^`]*)?`", DOCS)}

    assert found - documented == set()
    assert documented - found == set()


def test_the_dashboard_loads_and_its_panels_stand_beside_each_other():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
    assert len(set(ids)) == len(ids) >= 12
    assert {each["name"] for each in DASHBOARD["templating"]["list"]} == {"datasource", "budget"}


def test_alerts_have_a_name_each_a_severity_and_words():
    names = [rule["alert"] for rule in ALERTS]

    assert len(set(names)) == len(names) == 7
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
