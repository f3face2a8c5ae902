"""What a gateway costs that does nothing: Starlette, uvicorn and pyreqwest, and no more.

``python -m benchmarks.bare_gateway PROVIDER_URL`` prints its own URL as a line of JSON.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

import uvicorn
from pyreqwest.client import ClientBuilder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def make(url: str) -> Starlette:
    clients: list[Any] = []

    async def passing(request: Request) -> Response:
        if not clients:
            clients.append(ClientBuilder().no_proxy().build())
        body = await request.body()
        asked = clients[0].post(url + request.url.path).body_bytes(body)
        reply = await asked.header("authorization", "Bearer k").build().send()
        content = (await reply.bytes()).to_bytes()
        kind = {"content-type": reply.get_header("content-type")}
        return Response(content, reply.status, kind)

    return Starlette(routes=[Route("/v1/chat/completions", passing, methods=["POST"])])


def main() -> None:
    at = socket.socket()
    at.bind(("127.0.0.1", 0))
    print(
        json.dumps({"url": f"http://127.0.0.1:{at.getsockname()[1]}/v1", "token": ""}), flush=True
    )
    config = uvicorn.Config(
        make(sys.argv[1]), loop="uvloop", http="httptools", log_level="error", access_log=False,
        lifespan="off",
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[at])


if __name__ == "__main__":
    main()
