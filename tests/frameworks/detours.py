"""HTTP transports between an SDK and the simulated provider, which speaks fewer tongues.

They stand in for services with paths of their own (Bedrock, Vertex), and for a model that answers
in the form that was asked for.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Callable
from types import ModuleType
from typing import Any

Asked = tuple[str, dict[str, Any]]  # a path, and a body


def client(
    family: ModuleType,
    *,
    server: str | None = None,
    ask: Callable[[str, dict[str, Any]], Asked] | None = None,
    answer: Callable[[dict[str, Any], bytes, str], bytes] | None = None,
    sync: bool = False,
) -> Any:
    """An HTTP client whose requests and answers are changed on their way.

    Args:
        family: httpx or httpx2.
        server: Where all of them go.
        ask: From path and body to those that the provider knows.
        answer: From the body that was asked, and what came, to what the SDK sees.
        sync: For threads.
    """

    def changed(request: Any) -> Any:
        if ask is None:
            return request
        path, body = ask(request.url.path, json.loads(request.content))
        headers = {"content-type": "application/json", "x-api-key": "sk-test"}
        return family.Request("POST", f"{server}{path}", headers=headers, json=body)

    def shown(request: Any, response: Any) -> Any:
        content = response.content
        if answer is not None:
            kind = response.headers["content-type"]
            content = answer(json.loads(request.content), content, kind)
        headers = {"content-type": response.headers["content-type"]}
        return family.Response(
            response.status_code, headers=headers, content=content, request=request
        )

    class Detour(family.AsyncHTTPTransport):  # type: ignore[misc, name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            response = await super().handle_async_request(changed(request))
            await response.aread()
            await response.aclose()
            return shown(request, response)

    class SyncDetour(family.HTTPTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            response = super().handle_request(changed(request))
            response.read()
            response.close()
            return shown(request, response)

    if sync:
        return family.Client(transport=SyncDetour(), timeout=60)
    return family.AsyncClient(transport=Detour(), timeout=60)


def in_form(body: dict[str, Any], content: bytes, kind: str) -> bytes:
    """The text of an answer as the one field that was asked for: in a tool's call, or as JSON."""
    said = json.loads(content)
    message = said["choices"][0]["message"]
    arguments = json.dumps({"text": message["content"]})
    if "tools" in body:
        name = body["tools"][0]["function"]["name"]
        function = {"name": name, "arguments": arguments}
        message |= {
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        }
    else:
        message["content"] = arguments
    return json.dumps(said).encode()


def of_bedrock(path: str, body: dict[str, Any]) -> Asked:
    """``/model/MODEL/invoke`` as Anthropic's own API."""
    _, _, model, method = path.split("/")
    del body["anthropic_version"]
    return "/v1/messages", body | {"model": model, "stream": method != "invoke"}


def as_bedrock(body: dict[str, Any], content: bytes, kind: str) -> bytes:
    """Events as AWS frames them."""
    if "event-stream" not in kind:
        return content
    events = [line[6:] for line in content.splitlines() if line.startswith(b"data: ")]
    return b"".join(map(_framed, events))


def _framed(event: bytes) -> bytes:
    payload = json.dumps({"bytes": base64.b64encode(event).decode()}).encode()
    said = {":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"}
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(text)) + text.encode()
        for name, text in said.items()
    )
    begin = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    whole = begin + struct.pack(">I", binascii.crc32(begin)) + headers + payload
    return whole + struct.pack(">I", binascii.crc32(whole))


def of_vertex(path: str, body: dict[str, Any]) -> Asked:
    """``…/models/MODEL:rawPredict`` as Anthropic's own API."""
    model, _, method = path.rpartition("/")[2].partition(":")
    del body["anthropic_version"]
    return "/v1/messages", body | {"model": model, "stream": method == "streamRawPredict"}
