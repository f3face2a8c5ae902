"""A key is nowhere but in the header that needs it: not on the disk, on a screen, or in a log."""

import json
import logging
import os
import pickle
import sqlite3
import stat
import sys
import threading
import traceback
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from scheduler import Budget, Request, Scheduler, events
from scheduler.errors import CallFailed, ConfigError
from scheduler.providers.answers import read_answer
from scheduler.providers.openai import OpenAI
from tests import warm

MARKER = "marker-7f3a9c"
KEY = f"sk-{MARKER}-Zm9vYmFyYmF6cXV4"
HEADER_KEY = f"hk-{MARKER}-cXV4YmF6YmFyZm9v"
PRICE = {"m": "1/1"}
FAULTS = ("400", "404", "500", "502", "redirect", "html", "error 200", "reset", "timeout")
ANSWER = {
    "choices": [{"message": {"role": "assistant", "content": "yes"}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
}


class Echo(BaseHTTPRequestHandler):
    """Does what the prompt says, and repeats every header it got wherever it can."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append(str(self.headers))
        word = body["messages"][0]["content"]
        said = f"refused {self.headers.get('authorization')} {self.headers.get('x-api-key')}"
        refusal = {"error": {"message": said, "code": "refused", "headers": dict(self.headers)}}
        page = f"<html><pre>{self.headers}</pre></html>"
        if word == "reset":
            self.close_connection = True
        elif word == "timeout":
            self.server.ending.wait(20)
            self.close_connection = True
        elif word in ("500", "html"):
            self.answer(500 if word == "500" else 200, page)
        elif word == "redirect":
            self.answer(302, "", location=f"/?key={KEY}&other={HEADER_KEY}")
        elif word == "error 200":
            self.answer(200, json.dumps(refusal))
        elif word.isdigit():
            self.answer(int(word), json.dumps(refusal))
        else:
            self.answer(200, json.dumps(ANSWER))

    def answer(self, status, text, **headers):
        content = text.encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words):
        pass


class Server(ThreadingHTTPServer):
    """What was presented to it, and whether it is to end."""

    daemon_threads = True

    def __init__(self):
        self.seen, self.ending = [], threading.Event()
        super().__init__(("127.0.0.1", 0), Echo)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


@pytest.fixture(scope="module")
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.ending.set()
            server.shutdown()
            thread.join()


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "SCHEDULER_"))}
    return {**kept, "OPENAI_API_KEY": KEY, "SCHEDULER_DEBUG": "1", **more}


def run(folder, *words, umask=-1, **more):
    """A command; gives its code and all that it wrote to its two streams."""
    done = warm.run(
        [sys.executable, "-m", "scheduler", *words], cwd=folder, env=environment(**more),
        capture_output=True, timeout=60, umask=umask, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def write_prompts(folder, name, words):
    lines = [
        {"custom_id": f"{n}", "method": "POST", "url": "/v1/chat/completions", "body": {
            "model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": word}]}}
        for n, word in enumerate(words)
    ]  # fmt: skip
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


BATCH = ("--price", "m=1/1", "--max-attempts", "1", "--timeout", "1s", "--on-exhausted", "stop")


@pytest.fixture(scope="module")
def after_batches(server, tmp_path_factory):
    """The folder of three batches (mixed, refused, out of money), codes and what was said."""
    folder = tmp_path_factory.mktemp("batches")
    write_prompts(folder, "mixed.jsonl", (*FAULTS, "fine"))
    write_prompts(folder, "refused.jsonl", ("401", "403"))
    write_prompts(folder, "poor.jsonl", ("fine", "fine"))
    url = {"OPENAI_BASE_URL": server.url}
    commands = [
        ("run", "mixed.jsonl", *BATCH),
        ("run", "refused.jsonl", *BATCH),
        ("run", "poor.jsonl", *BATCH, "--budget", "$0"),
        *(tuple(words.split()) for words in (
            "status --json", "queue --json", "audit --json", "spend --json", "doctor --json",
        )),
    ]  # fmt: skip
    done = [run(folder, *words, **url) for words in commands]
    return folder, [code for code, _ in done], [said for _, said in done]


def test_no_command_shows_the_key_even_when_the_provider_repeats_it(after_batches, server):
    _, codes, said = after_batches

    assert codes[:3] == [1, 4, 75]
    assert any(KEY in headers for headers in server.seen)
    assert b"Traceback" in said[1] or b"refused" in b"".join(said)
    assert [text for text in said if MARKER.encode() in text] == []


def test_no_file_has_the_key_in_it_even_when_the_provider_repeats_it(after_batches):
    folder, _, _ = after_batches
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    assert {"mixed.results.jsonl", "mixed.errors.jsonl", "poor.parked.jsonl"} <= files.keys()
    assert any(name.endswith(".db") for name in files)
    assert b"[hidden]" in files["mixed.errors.jsonl"]
    assert [name for name, content in files.items() if MARKER.encode() in content] == []


@contextmanager
def everything_logged():
    """All records of all loggers, as text, down to DEBUG."""
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record) + repr(record.__dict__))

    root, handler = logging.getLogger(), Keep()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


def shown(error):
    """Every way in which an error is shown or kept."""
    parts = [str(error), repr(error), repr(vars(error)), repr(pickle.dumps(error))]
    return "".join(parts + traceback.format_exception(error))


@pytest.mark.parametrize("is_httpx", [False, True], ids=["quick", "httpx"])
@pytest.mark.anyio
async def test_the_library_shows_the_key_in_no_log_event_error_or_repr(server, tmp_path, is_httpx):
    seen, errors = [], []
    client = httpx.AsyncClient(trust_env=False) if is_httpx else None
    provider = OpenAI(
        api_key=KEY, base_url=server.url, headers={"X-Api-Key": HEADER_KEY}, client=client,
        timeout=1,
    )  # fmt: skip
    path = tmp_path / "scheduler.db"
    with everything_logged() as logged:
        async with Scheduler(
            path, budgets=Budget("default", "$1"), providers=provider, prices=PRICE, max_attempts=1
        ) as s:
            s.on(events.Event, seen.append)
            for word in (*FAULTS, "401", "fine"):
                request = Request.chat("m", word, max_tokens=9, key=word)
                try:
                    await s.run(request)
                except CallFailed as error:
                    errors.append(error)
                seen.append(vars(provider))
            seen += [request, s, vars(s), provider, s.stats()]
            written = path.read_bytes()
    if client is not None:
        await client.aclose()

    # At DEBUG its library repeats all headers that came: what a provider repeats is there.
    logged = [text for text in logged if not (is_httpx and "'name': 'httpcore." in text)]
    texts = [*logged, *map(shown, errors), *map(repr, seen), *map(str, seen)]
    assert len(errors) == len(FAULTS) + 1
    assert HEADER_KEY in server.seen[-1]
    assert any("[hidden]" in text for text in texts)
    assert [text for text in texts if MARKER in text] == []
    assert MARKER.encode() not in written + path.read_bytes()


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=oct)
def test_only_the_owner_can_read_what_a_batch_writes_whatever_the_umask_is(tmp_path, umask):
    write_prompts(tmp_path, "p.jsonl", [str(n) for n in range(12)])
    given = set(tmp_path.iterdir())
    code, said = run(
        tmp_path, "run", "p.jsonl", *BATCH, "--budget", "$0.0002", "--base-url",
        "sim:", umask=umask,
    )  # fmt: skip

    assert code == 75, said
    made = {path.name: path.stat().st_mode & 0o777 for path in set(tmp_path.iterdir()) - given}
    assert {"p.results.jsonl", "p.parked.jsonl", "scheduler.db"} <= made.keys()
    assert set(made.values()) == {0o600}


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=oct)
@pytest.mark.anyio
async def test_only_the_owner_can_read_a_journal_whatever_the_umask_is(tmp_path, umask):
    path = tmp_path / "scheduler.db"
    before = os.umask(umask)
    try:
        async with Scheduler(path, budgets=Budget("default", "$1"), providers=OpenAI(api_key=KEY)):
            with closing(sqlite3.connect(path, isolation_level=None)) as db:
                db.execute("BEGIN IMMEDIATE")
                db.execute("UPDATE budgets SET name = name")
                modes = {each.name: each.stat().st_mode for each in tmp_path.iterdir()}
                db.execute("ROLLBACK")
    finally:
        os.umask(before)

    assert modes.keys() & {"scheduler.db-journal", "scheduler.db-wal"}
    assert {stat.S_IMODE(mode) for mode in modes.values()} == {0o600}


def test_the_simulated_server_listens_only_on_this_machine_unless_told_otherwise(tmp_path):
    code, said = run(tmp_path, "simulate", "--host", "0.0.0.0", "--port", "0")

    assert code == 3
    assert b"reachable from elsewhere" in said


BAD_URLS = [
    f"http://user:{MARKER}@127.0.0.1:1/v1",
    pytest.param(f"http://127.0.0.1:1/v1?api_key={KEY}", id="query"),
    pytest.param(f"http://user:{MARKER}@127.0.0.1:port/v1", id="bad port"),
    pytest.param(f"user:{MARKER}@127.0.0.1/v1", id="no scheme"),
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_base_url_with_a_secret_in_it_is_refused_without_showing_it(url):
    with pytest.raises(ConfigError) as caught:
        OpenAI(base_url=url)

    assert MARKER not in shown(caught.value)


LONG_KEY = f"sk-proj-{MARKER}-" + "0123456789abcdef" * 9


@pytest.mark.parametrize("content", [
    pytest.param(LONG_KEY.encode() * 20, id="many times"),
    pytest.param(b" " * 850 + LONG_KEY.encode() * 2, id="behind blanks"),
])  # fmt: skip
def test_no_half_of_a_repeated_key_is_left_where_a_page_is_cut(content):
    with pytest.raises(CallFailed) as caught:
        read_answer(500, {}, content, (LONG_KEY,))

    assert MARKER not in shown(caught.value)


def test_a_key_given_as_the_code_of_an_error_with_status_200_is_not_shown():
    content = json.dumps({"error": {"message": "no", "code": KEY}}).encode()
    with pytest.raises(CallFailed) as caught:
        read_answer(200, {}, content, (KEY,))

    assert MARKER not in shown(caught.value)


@pytest.mark.anyio
async def test_any_header_of_ones_own_that_the_provider_repeats_is_hidden(server):
    provider = OpenAI(base_url=server.url, headers={"X-Goog-Api-Key": HEADER_KEY})
    with pytest.raises(CallFailed) as caught:
        await provider.send(Request.chat("m", "400"))
    await provider.aclose()

    assert MARKER not in shown(caught.value)


@pytest.mark.anyio
async def test_a_key_that_only_the_callers_own_client_knows_is_hidden_too(server):
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as client:
        provider = OpenAI(base_url=server.url, client=client)
        with pytest.raises(CallFailed) as caught:
            await provider.send(Request.chat("m", "400"))

    assert MARKER not in shown(caught.value)
