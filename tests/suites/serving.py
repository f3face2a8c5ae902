"""A server for tests that need one: it answers with what a request brought along."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.suites.inside.scheduler_suites_answers import ANSWER, KIND

HOST, PORT = "127.0.0.1", 4010  # where suites that a generator made expect it
_TYPES = {"json": "application/json", "text": "text/plain", "stream": "text/event-stream"}


class Echo(BaseHTTPRequestHandler):
    """Gives back the answer of the header; nothing at all if there is none."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        self._read()
        body = base64.b64decode(self.headers.get(ANSWER, ""))
        kind = self.headers.get(KIND, "json")
        if kind == "stream":
            body = b"data: " + body + b"\n\n"
        self.send_response(200)
        self.send_header("content-type", _TYPES.get(kind, _TYPES["json"]))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _read(self) -> None:
        """Take the request in, so that the connection can be used again."""
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        else:
            self.rfile.read(int(self.headers.get("content-length", 0)))

    def handle_one_request(self) -> None:
        """Answer one more; who hangs up wants none."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _answer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """A server on that port, within the block, unless one is there already that knows the API."""
    try:
        server = ThreadingHTTPServer((HOST, PORT), Echo)
    except OSError:
        yield
        return
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
