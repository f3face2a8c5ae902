"""An endpoint for webhooks that keeps what it was told, and may behave badly."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Endpoint:
    """Listens while it is used in ``with``.

    Attributes:
        answers: Of each next delivery: a status, or ``"slow"``, ``"stuck"``, ``"huge"``, ``"redirect"``; then 204.
        told: Headers and bodies, in the order in which they came.
    """

    def __init__(self, *answers):
        self.answers, self.told, self.paths = list(answers), [], []
        self._ends = threading.Event()

    def __enter__(self):
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                endpoint.paths.append(self.path)
                endpoint.told.append(({k.lower(): v for k, v in self.headers.items()}, body))
                endpoint.answer(self, endpoint.answers.pop(0) if endpoint.answers else 204)

            do_GET = do_POST

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook/s3cr3t-path-of-mine"
        return self

    def __exit__(self, *exc):
        self._ends.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler, how):
        try:
            if how == "stuck":
                self._ends.wait(60)
                return
            if how == "slow":
                time.sleep(3)
                how = 204
            if how == "huge":
                handler.send_response(200)
                handler.send_header("content-length", str(10**10))
                handler.end_headers()
                for _ in range(100_000):
                    handler.wfile.write(b"x" * 65_536)
                return
            handler.send_response(302 if how == "redirect" else how)
            if how == "redirect":
                handler.send_header("location", "/elsewhere")
            handler.send_header("content-length", "0")
            handler.end_headers()
        except OSError:
            pass  # whoever asked has gone

    def events(self):
        return [json.loads(body) for _, body in self.told]
