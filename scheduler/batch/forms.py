"""What a record becomes: a request, or the reason why it is none. Pure.

One JSON object, in any of these forms:

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {…}}
    {"custom_id": "a", "params": {…}}                   a line of Anthropic's batches
    {"model": "gpt-4o-mini", "messages": […]}           a raw body, with or without an id
    {"prompt": "Say hello", "id": 7, "label": "x"}      a row of a data set: one user message

Of a body everything is sent; of a row what the endpoint takes.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from scheduler.batch.endpoints import deployment_at, endpoint_at, endpoint_for, is_embedding_name
from scheduler.batch.parameters import own_parameters, words
from scheduler.errors import brief
from scheduler.request import CHAT, EMBEDDINGS, ENDPOINTS, MESSAGES, MODERATIONS

MAX_KEY = 500
_ENVELOPE = frozenset(("custom_id", "method", "url"))  # of a line, never of a body
_SIMILAR = "customid"  # what custom_id is when its spelling is not minded
# A column that says what is to be done with another: without it the question is another one.
_INSTRUCTIONS = ("instruction", "instructions", "system_prompt", "system_message")
_ANSWERS = words(
    "ideal output outputs expected expected_output target targets answer answers reference "
    "completion response label labels"
)
_WHOLE_INPUTS = (EMBEDDINGS, MODERATIONS)


@dataclass(slots=True)
class Formed:
    """A body with its endpoint.

    Attributes:
        dropped: Columns that are not sent.
    """

    url: str
    body: dict[str, Any]
    dropped: tuple[str, ...] = ()


class Fields:
    """A record as JSON, read as far as it can be.

    Attributes:
        named: The object's members.
        problem: The first thing in it that is no JSON, though the rest could be read.
    """

    def __init__(self, data: bytes) -> None:
        """Read it. Raises `ValueError` with what is wrong."""
        self.problem = ""
        try:
            text = data.decode("utf-8").lstrip("\ufeff")
            found = json.loads(text, parse_constant=self._no_number, parse_float=self._finite)
        except json.JSONDecodeError as exc:
            raise ValueError(f"not JSON: {exc.msg} at {_where(exc)}") from None
        except UnicodeDecodeError:
            raise ValueError("not UTF-8 text") from None
        except RecursionError:
            raise ValueError("nested too deep") from None
        except ValueError:  # Python's own limit, for integers only
            raise ValueError("has a number of more than 4,300 digits") from None
        if not isinstance(found, dict):
            raise ValueError(f"not a JSON object but {type(found).__name__}")
        self.named: dict[str, Any] = found

    def _no_number(self, text: str) -> None:
        self.problem = self.problem or f"{text[:20]} is no number in JSON"

    def _finite(self, text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            self._no_number(text)
        return number


def _where(error: json.JSONDecodeError) -> str:
    line = f"line {error.lineno} of it, " if error.lineno > 1 else ""
    return f"{line}column {error.colno}"


def read_key(named: dict[str, Any], column: str | None) -> tuple[str, str]:
    """The id of a record and the field that has it; both empty if it has none.

    Raises:
        ValueError: It is none, or its field is misspelt.
    """
    field = column or "custom_id"
    if named.get(field) is not None:
        return _as_key(named[field], field), field
    if column is not None:
        raise ValueError(f"has no {column!r}, which --id-column says is the id of a line")
    for name in named:
        if name != "custom_id" and re.sub(r"[\W_]", "", name).lower() == _SIMILAR:
            raise ValueError(
                f"has {name!r} and no 'custom_id': rename it, or say --id-column {name}"
            )
    try:
        return (_as_key(named["id"], "id"), "id") if named.get("id") is not None else ("", "")
    except ValueError:
        return "", ""  # nobody said that this column is an id


def _as_key(value: object, field: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = brief(value) if isinstance(value, float) or abs(value) < 10**300 else None
    if not isinstance(value, str) or not value or len(value) > MAX_KEY:
        raise ValueError(
            f"{field} {brief(value)} is not a text of 1 to {MAX_KEY} characters, nor a number"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{field} {brief(value)} is no text: surrogates not allowed") from None
    return value


def salvage_key(data: bytes, named: dict[str, Any], column: str | None) -> str:
    """The id of a record that is bad, as far as one can be made out; else empty."""
    fields = [column] if column else ["custom_id"]
    fields += [name for name in named if re.sub(r"[\W_]", "", name).lower() == _SIMILAR]
    for field in [*fields, "id"]:
        try:
            if field in named:
                return _as_key(named[field], field)
            if not named:
                return _as_key(_written(data, field), field)
        except ValueError:
            continue
    return ""


def _written(data: bytes, field: str) -> object:
    """A field's value as it stands in text that is no JSON as a whole."""
    name = re.escape(json.dumps(field).encode())
    before = rb"^\s*[\[,]?\s*\{\s*" if field == "id" else b""  # elsewhere it is another's id
    found = re.search(before + name + rb'\s*:\s*("(?:[^"\\]|\\.)*"|-?\d{1,300}(?!\d))', data)
    return None if found is None else json.loads(found[1].decode("utf-8", "replace"))


def form(named: dict[str, Any], model: str | None) -> Formed:
    """The body that a record asks for, and its endpoint.

    Args:
        named: Its members. They are not changed.
        model: For records that name none.

    Raises:
        ValueError: It asks for nothing that could be sent; says why.
    """
    formed = _formed(named, model)
    body = formed.body
    given = body.get("model")
    if not given and model is not None and _may_default(formed.url, model):
        given = body["model"] = model
    if not given and formed.url == MODERATIONS:
        body.pop("model", None)  # the API has a default for it
        return formed
    if not isinstance(given, str) or not given:
        raise ValueError("names no model; add one, or give -m MODEL for lines without")
    _check_text(given, "model")
    if formed.url in (CHAT, MESSAGES) and not isinstance(body.get("messages"), list):
        raise ValueError("messages is not a list")
    return formed


def _may_default(url: str, model: str) -> bool:
    """Moderations have a model of their own; what is meant for the chats is none."""
    return url != MODERATIONS or "moderation" in model


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} {brief(text)} is no text: surrogates not allowed") from None
    if "\0" in text:
        raise ValueError(f"{what} {brief(text)} has a NUL character in it")


def _formed(named: dict[str, Any], model: str | None) -> Formed:
    if "body" in named:
        return _with_body(named, model)
    params = named.get("params")
    if isinstance(params, dict) and "messages" in params:
        url = named.get("url")
        return Formed(MESSAGES if url is None else _endpoint(url), dict(params))
    _refuse_foreign(named)
    return _row(named, model)


def _with_body(named: dict[str, Any], model: str | None) -> Formed:
    method, url, body = named.get("method"), named.get("url"), named["body"]
    if method is not None and not (isinstance(method, str) and method.strip().upper() == "POST"):
        raise ValueError(f"method {brief(method)} is not 'POST'")
    endpoint = None if url is None else _endpoint(url)
    if not isinstance(body, dict):
        raise ValueError(f"body is not an object but {type(body).__name__}")
    body = dict(body)
    deployment = deployment_at(url)
    if not body.get("model") and deployment is not None:
        body["model"] = deployment
    return Formed(endpoint or endpoint_for(_asked(body, model)), body)


def _endpoint(url: object) -> str:
    endpoint = endpoint_at(url)
    if endpoint is None:
        google = " (that is one of Google's own, which no provider here sends)"
        is_google = isinstance(url, str) and ":" in url.rpartition("/")[2]
        raise ValueError(
            f"url {brief(url)} is not one of {', '.join(ENDPOINTS)}{google if is_google else ''}"
        )
    return endpoint


def _asked(body: dict[str, Any], model: str | None) -> dict[str, Any]:
    """The body as it will be asked, with the model for those that name none."""
    return body if body.get("model") or model is None else {**body, "model": model}


def _refuse_foreign(named: dict[str, Any]) -> None:
    """Name what is for others. Raises `ValueError`."""
    if "modelInput" in named:
        what = "a record for Amazon Bedrock's batch inference"
        raise ValueError(_foreign(what, 'its modelInput as "body", with "url" and a "model"'))
    inner = named.get("request")
    contents = inner if isinstance(inner, dict) else named
    if any(name in contents for name in ("contents", "generationConfig", "generation_config")):
        what = "a line for Google's batches (Gemini, Vertex AI)"
        raise ValueError(_foreign(what, 'it with "messages": Gemini takes these as well'))
    if "instances" in named:
        raise ValueError(_foreign("a line for Vertex AI's predictions", 'it with "input"'))
    if isinstance(inner, dict):
        raise ValueError("has a 'request', which is read as no form of line; call it 'body'")
    if "response" in named and "error" in named and "custom_id" in named:
        raise ValueError(
            "is a line of results, not of requests: give the file that they were made from"
        )
    if isinstance(named.get("result"), dict) and "custom_id" in named:
        raise ValueError("is a line of Anthropic's results, not of requests")


def _foreign(what: str, advice: str) -> str:
    return f"is {what}, which no provider here sends. Write {advice}"


def _row(named: dict[str, Any], model: str | None) -> Formed:
    fields = {name: value for name, value in named.items() if name not in _ENVELOPE}
    url = _named_endpoint(named)
    _refuse_halves(fields, url, model)
    body, used = _as_body(fields, url)
    url = url or endpoint_for(_asked(body, model))
    sent = own_parameters(url, body)
    return Formed(
        url, sent, tuple(name for name in fields if name not in sent and name not in used)
    )


def _named_endpoint(named: dict[str, Any]) -> str | None:
    """The endpoint of a row that names one: many have a column "url" that is something else."""
    url = named.get("url")
    return None if not isinstance(url, str) or "://" in url else endpoint_at(url)


def _refuse_halves(fields: dict[str, Any], url: str | None, model: str | None) -> None:
    """Refuse rows of which one column alone is only a part of the question."""
    halves = [name for name in _INSTRUCTIONS if fields.get(name)]
    if "messages" in fields:
        is_whole = _begins_with_system(fields["messages"])
        halves = [] if is_whole else [name for name in halves if name.startswith("system")]
    elif isinstance(fields.get("prompt"), str | list):
        halves += ["input"] if fields.get("input") else []
    elif "input" in fields:
        answers = [name for name in fields if name in _ANSWERS]
        if answers and (url in _WHOLE_INPUTS or _embeds(fields.get("model") or model)):
            answers = []  # there the input is all
        if halves == ["instructions"] and not answers:
            return  # a parameter of the Responses API
        halves += ["instruction"] if "instruction" in fields and not halves else []
        halves += answers
        halves += ["input"] if halves else []
    elif "instruction" in fields:
        halves = halves or ["instruction"]
    else:
        return  # it has nothing that is read, and that will be told
    if halves:
        raise ValueError(
            f"is a row of a data set with {', '.join(map(repr, halves))}: which of it is the question "
            "is not plain, and nothing was sent for it. Read are 'prompt' (with 'system'), "
            "'messages', or a whole request under 'body'"
        )


def _begins_with_system(turns: object) -> bool:
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and first.get("role") in ("system", "developer")


def _embeds(model: object) -> bool:
    name = model.lower() if isinstance(model, str) else ""
    return is_embedding_name(name) or "moderation" in name


def _as_body(fields: dict[str, Any], url: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The row as a body, and the columns that went into its messages."""
    if url not in (None, CHAT, MESSAGES) or "messages" in fields or "input" in fields:
        return fields, ()
    if "prompt" not in fields:
        raise ValueError(_has_none(fields))
    prompt, system = fields["prompt"], fields.get("system")
    if isinstance(prompt, list) and prompt and all(_is_turn(turn) for turn in prompt):
        turns = prompt
    elif isinstance(prompt, str):
        turns = [{"role": "user", "content": prompt}]
    else:
        raise ValueError(f"prompt is not a text but {type(prompt).__name__}")
    body = {name: value for name, value in fields.items() if name != "prompt"}
    if system is None or url == MESSAGES:
        return {**body, "messages": turns}, ("prompt",)
    if not isinstance(system, str):
        raise ValueError(f"system is not a text but {type(system).__name__}")
    del body["system"]
    turns = [{"role": "system", "content": system}, *turns] if system else turns
    return {**body, "messages": turns}, ("prompt", "system")


def _is_turn(turn: object) -> bool:
    return isinstance(turn, dict) and "role" in turn and "content" in turn


def _has_none(fields: dict[str, Any]) -> str:
    columns = ", ".join(brief(name) for name in list(fields)[:8])
    lists = [
        name for name, value in fields.items()
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
    ]  # fmt: skip
    advice = ""
    if "conversations" in fields:
        advice = ". That is ShareGPT's form: rename it 'messages', 'from' 'role', 'value' 'content'"
    elif lists:
        advice = f". To read the array of it: jq -c '.[{json.dumps(lists[0])}][]' FILE"
    elif columns:
        advice = ". Rename the column that is asked 'prompt'"
    return (
        "has none of body, messages, input or prompt"
        f"{f' (it has {columns})' if columns else ''}{advice}"
    )
