"""The files in examples/deploy: what stands in them is what the command takes, and what it does."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from scheduler.cli.app import app
from scheduler.cli.exits import Exit
from scheduler.duration import parse_duration_ms

DEPLOY = Path(__file__).parent.parent / "examples" / "deploy"
GROUP = typer.main.get_command(app)


class Unit(configparser.RawConfigParser):
    """As systemd reads one: names keep their case, and may stand several times."""

    def __init__(self):
        super().__init__(strict=False, delimiters=("=",), comment_prefixes=("#", ";"))
        self.optionxform = str


def unit():
    read = Unit()
    read.read(DEPLOY / "scheduler-worker.service")
    return read


def manifests():
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def containers(manifest):
    spec = manifest["spec"]["template"]["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]


def command_lines():
    yield shlex.split(unit()["Service"]["ExecStart"])
    for manifest in manifests():
        for each in containers(manifest):
            yield [*each["command"], *each["args"]]


def parsed(words):
    """What our own parser makes of a command line; raises what it would tell."""
    assert Path(words[0]).name == "scheduler"
    name, *rest = words[1:]
    if "--config" in rest:  # it is read, and is not there
        rest[rest.index("--config") + 1] = str(DEPLOY.parent / "scheduler.toml")
    command = GROUP.get_command(typer.Context(GROUP), name)
    return name, command.make_context(name, rest).params


@pytest.mark.parametrize("words", list(command_lines()), ids=" ".join)
def test_our_own_parser_takes_the_command_line(words):
    name, params = parsed(words)

    assert name in ("worker", "submit", "collect")
    for option in ("grace", "max_wait"):
        if params.get(option) is not None:
            assert parse_duration_ms(params[option], option) > 0


def test_a_command_line_that_is_none_would_be_noticed():
    with pytest.raises(Exception, match="No such option"):
        parsed(["scheduler", "worker", "--no-such-thing"])


def test_whoever_stops_a_worker_waits_for_longer_than_its_grace():
    service = unit()["Service"]
    _, params = parsed(shlex.split(service["ExecStart"]))
    assert int(service["TimeoutStopSec"]) * 1000 > parse_duration_ms(params["grace"], "grace")

    deployment, _ = manifests()
    (worker,) = containers(deployment)
    _, params = parsed([*worker["command"], *worker["args"]])
    given = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert given * 1000 > parse_duration_ms(params["grace"], "grace")


def test_systemd_does_what_the_exit_codes_mean():
    service = unit()["Service"]

    assert service["KillSignal"] == "SIGTERM"
    assert service["Restart"] == "on-failure"
    assert int(service["SuccessExitStatus"]) == Exit.INTERRUPTED
    never = set(map(int, service["RestartPreventExitStatus"].split()))
    assert never == {Exit.USAGE, Exit.CONFIG, Exit.CREDENTIALS}


def test_only_workers_have_keys_and_no_key_stands_in_a_file():
    with_keys = [
        each["name"] for manifest in manifests() for each in containers(manifest)
        if "envFrom" in each
    ]  # fmt: skip
    assert with_keys == ["worker"]
    for path in DEPLOY.iterdir():
        assert not re.search(r"sk-\w{8}|_API_KEY=[^.…\s]", path.read_text()), path


def test_every_kind_of_manifest_names_what_it_needs():
    assert [each["kind"] for each in manifests()] == ["Deployment", "Job"]
    deployment, job = manifests()
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # else the policy is refused
    codes = set(rule["onExitCodes"]["values"])
    assert codes == {Exit.FAILED, Exit.USAGE, Exit.CONFIG, Exit.CREDENTIALS}
    for manifest in (deployment, job):
        for each in containers(manifest):
            stores = [env["name"] for env in each["env"]]
            assert stores == ["SCHEDULER_STORE"]
