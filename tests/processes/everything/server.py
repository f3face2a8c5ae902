"""A server that answers in every bad way there is, and counts what it bills for.

The model of a request says in which way, its prompt which line it is. How it answers depends on
these and on how often that prompt was asked before, on nothing else, so any run may be repeated.

    python -m tests.processes.everything.server     prints {"url": …}

GET /billed tells the bill; GET /top-up gives its account credit again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from typing import Any

from tests.processes.everything.faults import FAULTS, Fault
from tests.processes.everything.wire import KEY, Call

LATENCY_S = 0.02
BY_MODEL: dict[str, Fault] = {fault.name: fault for fault in FAULTS}


class Bill:
    """What the server has done, and for how much; kept per model."""

    def __init__(self) -> None:
        self.nusd: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.tries: Counter[str] = Counter()
        self.strangers = 0  # calls without the key

    def as_json(self) -> dict[str, Any]:
        return {
            "nusd": dict(self.nusd), "calls": dict(self.calls), "tries": dict(self.tries),
            "billed_nusd": self.nusd.total(), "strangers": self.strangers,
        }  # fmt: skip


class BadServer:
    """Keeps the bill and answers."""

    def __init__(self) -> None:
        self.bill = Bill()
        self._has_credit = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                await self._one(reader, writer)
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        if path == "/top-up":
            self._has_credit = True
        if method == "GET":
            await Call(path, {}, 0, reader, writer).reply(200, self.bill.as_json())
            return
        if headers.get("authorization") != f"Bearer {KEY}":
            self.bill.strangers += 1
        call = Call(path, json.loads(content), 0, reader, writer)
        call.tries = self.bill.tries[call.prompt]
        self.bill.tries[call.prompt] += 1
        self.bill.calls[call.model] += 1
        fault = BY_MODEL.get(call.model)
        is_bad = fault is not None and call.tries < fault.bad_tries
        if fault is not None and fault.wants_credit:
            is_bad = not self._has_credit
        # Before a byte leaves: nobody may look between the answer and its bill.
        self.bill.nusd[call.model] += self._cost_nusd(call, fault if is_bad else None)
        await asyncio.sleep(LATENCY_S)
        if is_bad and fault is not None:
            await fault.answer(call)
        else:
            await call.good()

    @staticmethod
    def _cost_nusd(call: Call, fault: Fault | None) -> int:
        if call.path.endswith("/moderations"):
            return 0
        if fault is None or fault.bills == "told":
            return call.price_nusd(call.output_tokens)
        return call.price_nusd() if fault.bills == "most" else 0


async def main() -> None:
    server = await asyncio.start_server(BadServer().serve, "127.0.0.1", 0, limit=1 << 20)
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"url": f"http://127.0.0.1:{port}/v1"}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
