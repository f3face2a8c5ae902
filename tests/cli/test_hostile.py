"""Whatever a name or a provider's words hold, what is shown is plain lines that steer nothing."""

import asyncio
import io
import json
import logging
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import pytest
from rich.console import Console

from scheduler import Budget, Request, Scheduler, Simulated
from scheduler.budget import Unit
from scheduler.cli.exits import report
from scheduler.cli.progress import progress, why
from scheduler.cli.status import sentence
from scheduler.errors import PriceUnknown, ProviderRefused
from scheduler.guards.plain import about, logger_of, one_line, shell_word
from scheduler.shortfall import ParkReason, Shortfall
from tests import warm

EVIL = "\x1b]0;owned\x07\x1b[31mred\nerror: forged line\r\n\x9b2J\u202egnp\u2066\u200b\u2028\ttab\x7f [bold]:skull: é€"
ODD = "--x [red]$(touch owned)`touch owned`;'\"\\ é€"
NAME = f"--x {EVIL}$(touch owned)`touch owned`;'\"\\ touch owned"
FORBIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


def assert_plain(raw, *, lines=None):
    text = raw.decode("utf-8")
    assert FORBIDDEN.findall(text.replace("\r\n", "\n")) == []
    assert not [line for line in text.splitlines() if line.startswith("error: forged")]


class Evil(BaseHTTPRequestHandler):
    """Refuses in words that steer a terminal."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        word = body["messages"][0]["content"]
        code = "insufficient_quota" if word == "429" else EVIL
        error = {"error": {"message": EVIL * 3, "code": code, "type": EVIL}}
        content = json.dumps(error).encode()
        self.send_response(int(word))
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def provider_url():
    with ThreadingHTTPServer(("127.0.0.1", 0), Evil) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def hostile_store(tmp_path_factory):
    """A store all of whose names are hostile, with what is parked, failed, spent and unknown."""
    path = tmp_path_factory.mktemp("hostile") / "scheduler.db"

    async def fill():
        provider = Simulated(prices={EVIL: "1/1"})
        budgets = [Budget(ODD, "$5/day"), Budget("paused", "$5"), Budget("small", "$0.000001")]
        async with Scheduler(path, budgets=budgets, providers=provider, prices={EVIL: "1/1"}) as s:

            def ask(key, budget):
                return Request.chat(
                    EVIL, "hi", max_tokens=5, key=f"{key}{EVIL}", budget=budget, job=EVIL,
                    tags={EVIL: EVIL},
                )  # fmt: skip

            await s.run(ask("one", ODD))
            await s.pause("paused")
            futures = [s.submit(ask(budget, budget)) for budget in ("paused", "small")]
            while sum(s.stats().parked.values()) < len(futures):
                await asyncio.sleep(0.02)

    anyio.run(fill)
    with sqlite3.connect(path) as db:  # as somebody else may have written them
        db.execute("INSERT OR REPLACE INTO prices VALUES (?, '1/1')", (EVIL,))
        db.execute(
            "UPDATE reservations SET state = 'suspense', why = ?1, provider_id = ?1", (EVIL,)
        )
        db.execute("UPDATE budgets SET name = name || ? WHERE name = 'paused'", (EVIL,))
        for name in ("paused", "small"):
            changed = json.dumps(name + EVIL)
            db.execute(
                "UPDATE lanes SET shortfall = replace(shortfall, ?, ?)", (f'"{name}"', changed)
            )
    return path


def command(folder, *words, **more):
    return warm.run(
        [sys.executable, "-m", "scheduler", *words], cwd=folder, capture_output=True, timeout=60,
        check=False, env={**os.environ, "SCHEDULER_STORE": "scheduler.db", **more},
    )  # fmt: skip


LOOKS = [
    ("status",), ("queue",), ("queue", "--state", "suspense"), ("budget", "list"), ("spend",),
    ("spend", "--by", "job"), ("spend", "--by", "budget", "--csv"), ("audit",), ("doctor",),
    ("prices", "show"), ("prices", "set", EVIL, "--in", "1", "--out", "1"),
    ("budget", "set", "--", ODD, "$6/day"), ("budget", "pause", "--", ODD), ("budget", "pause", "--", NAME), ("budget", "set", EVIL, "$1"),
    ("budget", "explain", EVIL), ("resolve", EVIL, "--void"), ("prices", "remove", f"no {EVIL}"),
    ("status", "--store", f"no {EVIL}.db"), ("run", f"no {EVIL}.jsonl"), ("quote", f"no {EVIL}.jsonl"),
    (EVIL,), ("run", "p.jsonl", f"--{EVIL}"), ("status", "--job", EVIL), ("resolve", "--attempt", EVIL),
    ("prune", "--before", "0s", "--archive", f"archive {one_line(EVIL)}\x1b[31m.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "word"),
    [("\udcff", r"$'\xff'"), ("\ud800", r"$'\xed\xa0\x80'"), ("a\ud83d", r"$'a\xed\xa0\xbd'")],
)
def test_half_a_character_and_bytes_that_are_none_are_words_of_a_shell(text, word):
    assert shell_word(text) == word


@pytest.mark.parametrize("words", LOOKS, ids=lambda words: one_line(" ".join(words))[:30])
@pytest.mark.parametrize("debug", ["", "1"], ids=["", "debug"])
def test_every_command_prints_hostile_names_as_plain_lines(hostile_store, words, debug):
    if debug and words[0] not in ("status", "resolve", "budget"):
        pytest.skip("the traceback is the same for all")
    done = command(hostile_store.parent, *words, SCHEDULER_DEBUG=debug)

    assert_plain(done.stdout)
    assert_plain(done.stderr)
    assert b"Traceback" not in done.stderr or debug


@pytest.mark.parametrize("mode", ["plain", "json", "auto"])
def test_a_run_prints_a_providers_words_as_plain_lines(provider_url, tmp_path, mode):
    lines = [{"custom_id": f"{n}{EVIL}", "method": "POST", "url": "/v1/chat/completions", "body": {
        "model": EVIL, "max_tokens": 5, "messages": [{"role": "user", "content": word}]}}
        for n, word in enumerate(("400", "429", "401"))]  # fmt: skip
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "[not\n")
    done = command(
        tmp_path, "run", "p.jsonl", "--base-url", provider_url, "--price", f"{EVIL}=1/1", "--on-exhausted",
        "stop", "--progress", mode, "--max-attempts", "1", OPENAI_API_KEY="sk-0123456789",
    )  # fmt: skip

    assert done.returncode == 4, done.stderr
    assert_plain(done.stdout)
    assert_plain(done.stderr)
    assert b"forged line" in done.stderr


def lack(reason, name):
    return Shortfall(ParkReason(reason), name, Unit.USD, 5, 1, 1, 5, 5, None, "UTC", "total")


@pytest.mark.parametrize("reason", ["paused", "larger_than_limit", "window_spent"])
@pytest.mark.parametrize(
    "name", [NAME, EVIL, "two words", "it's", "-f", "$(touch owned)", "a;touch owned"]
)
def test_commands_that_are_shown_mean_the_name_and_nothing_else_when_pasted(reason, name, tmp_path):
    if sys.platform == "win32":
        pytest.skip("another shell")
    store = f" --store {shell_word('a b.db')}"
    told = [why(lack(ParkReason(reason), name), 1, 0, store)]
    if reason == "paused":
        told.append(sentence(lack(ParkReason(reason), name), 0, store))
    for text in told:
        assert not FORBIDDEN.search(text)
        _, _, shown = text.rpartition("scheduler budget ")
        probe = "import sys, json; print(json.dumps(sys.argv[1:]))"
        run = f"{shlex.quote(sys.executable)} -c {shlex.quote(probe)} {shown}"
        done = subprocess.run(["bash", "-c", run], capture_output=True, cwd=tmp_path, check=True)
        words = json.loads(done.stdout)
        assert name in words
        assert "a b.db" in words
        assert os.listdir(tmp_path) == []


def test_what_an_unknown_price_asks_to_paste_is_quoted():
    text = str(PriceUnknown("a$(b) c"))
    assert "scheduler prices set 'a$(b) c' --in" in text
    assert "--price 'a$(b) c=0.10/0.20'" in text
    assert about("-m", " --in 1") == "--in 1 -- -m"


def test_a_bar_takes_nothing_in_a_name_for_markup(capsys):
    stream = io.StringIO()
    shown = progress("bar", stream)
    shown._console = Console(file=stream, width=200, force_terminal=False)
    shown.say(f"budget '[red]x[/red] :smile:' {EVIL}")
    shown.close()

    assert "[red]x[/red] :smile:" in stream.getvalue()
    assert not FORBIDDEN.search(stream.getvalue().replace("\x1b[?25h", "").replace("\x1b[?25l", ""))


def test_logs_are_plain_lines_too(caplog):
    for name in ("scheduler.calls", "scheduler.resolver", "scheduler.stores.sqlite"):
        with caplog.at_level(logging.DEBUG):
            logger_of(name).warning("%s said %r: 100%% of %s", EVIL, EVIL, ValueError(EVIL))
    logger_of("scheduler.calls").warning("plain %d%%", 5)

    told = [each.getMessage() for each in caplog.records if each.name.startswith("scheduler")]
    assert len(told) == 4
    assert not any(map(FORBIDDEN.search, told))
    assert told[-1] == "plain 5%"


def test_an_error_of_any_length_is_one_line_of_bounded_length(capsys):
    report(ProviderRefused(400, "x" * 100_000 + EVIL), as_json=True)
    told = capsys.readouterr()

    assert len(told.err.splitlines()) == 1
    assert len(told.err) < 5_000
    assert len(told.out.splitlines()) == 1
