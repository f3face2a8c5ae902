"""What the gateway's own surface promises, as OpenAPI: paths, headers, refusals; made from its routes.

What of a body is the provider's business is open here. A route that nothing is said of is an error,
so that this stays whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from starlette.routing import BaseRoute, Route

MODELS = ["sim-small", "nobody-knows"]
_TEXT = {"type": "string", "maxLength": 200}
_MODEL = {"type": "string", "enum": MODELS}
_MESSAGES = {
    "type": "array", "minItems": 1, "maxItems": 3,
    "items": {
        "type": "object", "required": ["role", "content"],
        "properties": {"role": {"type": "string", "enum": ["user", "assistant"]}, "content": _TEXT},
    },
}  # fmt: skip
_FEW = {"type": "integer", "minimum": 1, "maximum": 200}
_PARTS = {
    "type": "array", "minItems": 1, "maxItems": 3,
    "items": {
        "type": "object", "required": ["parts"],
        "properties": {
            "role": {"type": "string", "enum": ["user"]},
            "parts": {
                "type": "array", "minItems": 1, "maxItems": 2,
                "items": {"type": "object", "required": ["text"], "properties": {"text": _TEXT}},
            },
        },
    },
}  # fmt: skip


def _object(needed: str, what: Any, **more: Any) -> dict[str, Any]:
    known = {"model": _MODEL, needed: what, **more}
    return {"type": "object", "required": ["model", needed], "properties": known}


_STREAM = {"stream": {"type": "boolean"}}
_PARAMS = {
    **_object("messages", _MESSAGES, max_tokens=_FEW, **_STREAM),
    "required": ["model", "messages", "max_tokens"],
}
_BATCH = {
    "type": "object", "required": ["input_file_id", "endpoint", "completion_window"],
    "properties": {
        "input_file_id": {"type": "string"}, "completion_window": {"enum": ["24h", "3s"]},
        "endpoint": {"enum": ["/v1/chat/completions", "/v1/responses", "/v1/nothing"]},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}  # fmt: skip
_MESSAGE_BATCH = {
    "type": "object", "required": ["requests"],
    "properties": {"requests": {
        "type": "array", "minItems": 1, "maxItems": 3,
        "items": {
            "type": "object", "required": ["custom_id", "params"],
            "properties": {
                "custom_id": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
                "params": _PARAMS,
            },
        },
    }},
}  # fmt: skip
_FILE = {
    "type": "object", "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary", "maxLength": 2_000},
        "purpose": {"enum": ["batch", "assistants"]},
    },
}  # fmt: skip
_NOTHING: dict[str, Any] = {"type": "object", "maxProperties": 0}
# By the end of a path, the longer first.
BODIES = {
    "/cancel": _NOTHING,
    "/messages/batches": _MESSAGE_BATCH,
    "/batches": _BATCH,
    "/files": _FILE,
    "/chat/completions": _object("messages", _MESSAGES, max_tokens=_FEW, **_STREAM),
    "/messages/count_tokens": _object("messages", _MESSAGES),
    "/completions": _object("prompt", _TEXT, max_tokens=_FEW, **_STREAM),
    "/responses": _object(
        "input", _TEXT, max_output_tokens=_FEW, background={"type": "boolean"}, **_STREAM
    ),
    "/embeddings": _object("input", _TEXT),
    "/moderations": _object("input", _TEXT),
    "/messages": _PARAMS,
    "/models/{rest}": {
        "type": "object", "properties": {
            "contents": _PARTS,
            "generationConfig": {"type": "object", "properties": {"maxOutputTokens": _FEW}},
        },
    },
}  # fmt: skip
_GOOGLES = [
    f"{model}:{method}"
    for model in MODELS
    for method in ("generateContent", "streamGenerateContent", "embedContent", "countTokens", "x")
]
# How long a call may be held is bounded, or trying them all would take long.
HEADERS = {
    "X-Scheduler-Budget": {"type": "string", "enum": ["default", "nobodys"]},
    "X-Scheduler-Tags": {"type": "string", "pattern": r"^[a-z]{1,8}=[a-z]{1,8}$"},
    "X-Scheduler-Priority": {"type": "string", "enum": ["batch", "interactive", "7"]},
    "X-Scheduler-Job": {"type": "string", "pattern": r"^[a-z]{1,8}$"},
    "X-Scheduler-Deadline": {"type": "string", "pattern": r"^[1-9][0-9]{0,2}ms$"},
    "X-Scheduler-Max-Cost": {"type": "string", "pattern": r"^0\.[0-9]{1,4}$"},
    "X-Scheduler-Wait": {"type": "string", "pattern": r"^(0|[1-9][0-9]{0,2}ms)$"},
    "X-Scheduler-Client-Timeout": {"type": "string", "pattern": r"^[1-9](\.[0-9])?$"},
}
_WORDS = {"type": "string", "minLength": 1}
ERRORS = {
    "openai": {
        "type": "object", "required": ["error"],
        "properties": {"error": {
            "type": "object", "required": ["message", "type", "code"],
            "properties": {"message": _WORDS, "type": _WORDS},
        }},
    },
    "anthropic": {
        "type": "object", "required": ["type", "error"],
        "properties": {"type": {"const": "error"}, "error": {
            "type": "object", "required": ["message", "type"],
            "properties": {"message": _WORDS, "type": _WORDS},
        }},
    },
    "google": {
        "type": "object", "required": ["error"],
        "properties": {"error": {
            "type": "object", "required": ["message", "status", "code"],
            "properties": {"message": _WORDS, "status": _WORDS, "code": {"type": "integer"}},
        }},
    },
}  # fmt: skip
REFUSALS = ("400", "401", "402", "403", "404", "405", "409", "413", "429")
# What is sent as a form, and what comes back as lines, by the end of a path.
FORMS = {"/files": "multipart/form-data"}
LINES = {"/content": "application/jsonl", "/results": "application/x-jsonl"}


def openapi(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """The description.

    Args:
        routes: As `scheduler.server.life.served` gives them.

    Raises:
        LookupError: There is one of which nothing is known.
    """
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        assert isinstance(route, Route)
        path = route.path.replace(":path}", "}")
        for method in (route.methods or set()) - {"HEAD"}:
            paths.setdefault(path, {})[method.lower()] = _operation(path, method)
    return {
        "openapi": "3.1.0", "info": {"title": "gateway", "version": "1"}, "paths": paths,
        "security": [{"token": []}],
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }  # fmt: skip


def _operation(path: str, method: str) -> dict[str, Any]:
    parameters = [_parameter("header", name, what) for name, what in HEADERS.items()]
    if "{provider}" in path:
        parameters.append(_parameter("path", "provider", {"enum": ["openai", "groq", "x"]}))
    if "{rest}" in path:
        among = _GOOGLES if method == "POST" else [*MODELS, "x/y"]
        parameters.append(_parameter("path", "rest", {"type": "string", "enum": among}))
        parameters.append(_parameter("query", "alt", {"enum": ["sse"]}))
    if "{id}" in path:
        ids = ["file-0", "batch_0", "msgbatch_0", "resp_bg_0"]
        parameters.append(_parameter("path", "id", {"type": "string", "enum": ids}))
    if method == "GET" and path.endswith(("/files", "/batches")):
        parameters.append(_parameter("query", "limit", {"type": "integer", "minimum": 0}))
    found: dict[str, Any] = {"parameters": parameters, "responses": _responses(path, method)}
    if method == "POST":
        body = next((what for end, what in BODIES.items() if path.endswith(end)), None)
        if body is None:
            raise LookupError(f"nothing is said of the body of {path}")
        kind = next((form for end, form in FORMS.items() if path.endswith(end)), "application/json")
        content = {kind: {"schema": copy.deepcopy(body)}}
        found["requestBody"] = {"required": body is not _NOTHING, "content": content}
    return found


def _parameter(place: str, name: str, schema: Any) -> dict[str, Any]:
    return {"in": place, "name": name, "required": place == "path", "schema": dict(schema)}


def _responses(path: str, method: str) -> dict[str, Any]:
    speaks = "anthropic" if "/messages" in path else "openai"
    if "/v1beta/" in path or (method == "POST" and "{rest}" in path):
        speaks = "google"
    lines = next((kind for end, kind in LINES.items() if path.endswith(end)), None)
    good: dict[str, Any] = {
        lines or "application/json": {"schema": {} if lines else {"type": "object"}}
    }
    if method == "POST":
        good["text/event-stream"] = {"schema": {}}
    refused = {
        "description": "refused",
        "content": {"application/json": {"schema": copy.deepcopy(ERRORS[speaks])}},
    }
    return {"200": {"description": "answered", "content": good}, **dict.fromkeys(REFUSALS, refused)}
