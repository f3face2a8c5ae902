"""boto3 and requests through `budgeted`, alone, in pandas and in threads."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.recipes.harness import PROGRAMS

IN_NUSD, OUT_NUSD = 800, 4000  # a token


class Service(BaseHTTPRequestHandler):
    """Answers as Bedrock's Converse, and as a search, and counts."""

    protocol_version = "HTTP/1.1"
    calls: dict[str, int]
    fails: int

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        kind = "converse" if self.path.endswith("/converse") else "search"
        self.calls[kind] += 1
        if self.calls[kind] <= self.fails:
            self.answer(503, {"message": "busy"})
        elif kind == "converse":
            self.answer(200, {
                "output": {"message": {"role": "assistant", "content": [{"text": "short"}]}},
                "stopReason": "end_turn",
                "usage": {"inputTokens": 20, "outputTokens": 7, "totalTokens": 27},
                "metrics": {"latencyMs": 1},
            })  # fmt: skip
        else:
            self.answer(200, {"hits": [], "cost_usd": 0.002})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def service():
    Service.calls, Service.fails = {"converse": 0, "search": 0}, 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(here, service, program, limit='"$5/day"'):
    """The recipe, then a program."""
    text = PROGRAMS["blocking.py"].replace('"$5/day"', limit)
    (here.path / "recipe.py").write_text(f"{text}\nURL = {service!r}\n{program}\ns.close()\n")
    keys = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }
    done = here.run("recipe.py", AWS_ENDPOINT_URL_BEDROCK_RUNTIME=service, **keys)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_boto3_and_requests_are_counted_by_what_they_tell(here, service):
    program = """
print(converse("Hi")["output"]["message"]["content"][0]["text"])
print(search(URL, "Hi"))
"""
    assert run(here, service, program) == "short\n{'hits': [], 'cost_usd': 0.002}\n"
    assert here.file.counted_nusd() == 20 * IN_NUSD + 7 * OUT_NUSD + 2_000_000
    here.check_books()


def test_a_column_is_asked_row_by_row_or_in_threads(here, service):
    program = """
texts = pd.Series([f"row {n}" for n in range(12)], index=list("abcdefghijkl"))
one = texts.map(converse)
many = label(texts)
print(len(one), list(many.index) == list(texts.index), set(one.map(in_the_end)) == {4.4e-05})
"""
    assert run(here, service, program) == "12 True True\n"
    assert Service.calls["converse"] == 24
    assert here.file.counted_nusd() == 24 * (20 * IN_NUSD + 7 * OUT_NUSD)


def test_threads_wait_for_money_and_never_overspend(here, service):
    program = """
import threading, time
budget = lambda: s.stats().budgets[0]
def raise_it():
    while not s.stats().parked:
        time.sleep(0.01)
    assert s.stats().posted_nusd + s.stats().reserved_nusd <= 2_000_000
    s.set_limit("default", "$5")
threading.Thread(target=raise_it).start()
print(len(label(pd.Series([f"row {n}" for n in range(40)]))))
"""
    assert run(here, service, program, '"$0.002"') == "40\n"
    here.check_books()


def test_what_the_service_refuses_reaches_the_caller_as_its_own_error(here, service):
    Service.fails = 100
    program = """
try:
    search(URL, "Hi")
except requests.HTTPError as error:
    print(error.response.status_code, *error.__notes__)
"""
    told = run(here, service, program)

    assert told.startswith("503 "), told
    assert here.file.audit().discrepancies == ()
