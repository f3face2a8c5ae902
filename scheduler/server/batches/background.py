"""Responses in the background: ``/v1/responses`` with ``background: true``.

The request is queued, and its client asks for it again by the id that it got. It is the gateway that
does this, not the provider, so it works with any that has the endpoint, and what it may cost is put
aside like everything else's.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.routing import BaseRoute

from scheduler.adapters.dialects import Call, Dialect
from scheduler.batch.results import plain
from scheduler.money import decimal_usd
from scheduler.request import Request, RequestState
from scheduler.server.asked import Asked
from scheduler.server.batches import door
from scheduler.server.batches.files import refuse_unkept
from scheduler.server.batches.record import BACKGROUND, is_id, new_id
from scheduler.server.batches.said import AGAIN_MS, LOOKED_AT, digest_of, is_again
from scheduler.server.batches.theirs import request_of
from scheduler.server.gateway import Gateway
from scheduler.server.line import Line, wanted_at
from scheduler.server.refusals import Whole
from scheduler.server.tokens import Token
from scheduler.stores.base import Finished, Picture
from scheduler.stores.papers import Paper

KIND = JOB = BACKGROUND
PREFIX = "resp_bg_"
_ECHOED: dict[str, Any] = {
    "instructions": None, "max_output_tokens": None, "metadata": {}, "model": "",
    "parallel_tool_calls": True, "previous_response_id": None, "reasoning": None,
    "temperature": None, "text": None, "tool_choice": "auto", "tools": [], "top_p": None,
    "truncation": None, "user": None,
}  # fmt: skip
_STATUS = {
    RequestState.QUEUED: "queued", RequestState.PARKED: "queued",
    RequestState.RUNNING: "in_progress", RequestState.CANCELLED: "cancelled",
}  # fmt: skip


class Background:
    """See the module."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self._s = gateway, gateway.scheduler
        gateway.background = self

    def routes(self) -> list[BaseRoute]:
        """What is served besides the call itself, which the gateway hands over."""
        served: list[tuple[str, str, door.Answer]] = [
            ("GET", "/v1/responses/{id}", self._retrieve),
            ("DELETE", "/v1/responses/{id}", self._delete),
            ("POST", "/v1/responses/{id}/cancel", self._cancel),
        ]
        return door.routes(self._gateway, Dialect.OPENAI, served)

    async def begin(self, line: Line, call: Call, asked: Asked, token: Token) -> Whole:
        """Queue a call, and say by which id it is asked for.

        Raises:
            SchedulerError, Unserved: It cannot be queued; nothing was sent.
        """
        refuse_unkept(self._gateway)
        if call.body.get("stream"):
            raise door.wrong(
                "a response in the background is not streamed here; leave 'stream' out and ask for it "
                "by its id", "stream_unsupported",
            )  # fmt: skip
        digest, now_ms = digest_of(line, call.encode(call.body)), self._s.now_ms()
        before = await self._begun_before(line, token, digest, now_ms)
        if before is not None:
            return door.said(await self._told(before))
        body = {name: each for name, each in call.body.items() if name != "background"}
        body = await self.linked(body, token)
        marks = {name: each for name, each in asked.marks.items() if name != "job"}
        provider, model = self._gateway.named(call.dialect, body["model"], wanted_at(line))
        body["model"] = model
        name = new_id(PREFIX)
        request = Request(body, url=call.url, key=name, job=JOB, provider=provider, **marks)
        self._s.validate(request)
        echo = {each: body.get(each, usual) for each, usual in _ECHOED.items()}
        text = {"echo": echo, "digest": digest}
        paper = Paper(KIND, name, token.name, json.dumps(text), now_ms, is_open=True)
        await self._s.store.add_paper(paper)
        try:
            (submitted,) = await self._s.enqueue([request])
        except BaseException:
            await self._s.store.remove_paper(KIND, name)
            raise
        whole = json.dumps({**text, "request_id": submitted.id})
        await self._s.store.change_paper(paper, whole, is_open=False)
        return door.said({**_shown(name, now_ms, echo), "status": "queued"})

    async def _begun_before(
        self, line: Line, token: Token, digest: str, now_ms: int
    ) -> Paper | None:
        """What this client began a moment ago, if it asks again since it did not hear of it."""
        if not is_again(line):
            return None
        for paper in await self._s.store.papers(KIND, token.name, limit=LOOKED_AT):
            is_late = paper.made_at_ms <= now_ms - AGAIN_MS
            if not is_late and not paper.is_open and json.loads(paper.text).get("digest") == digest:
                return paper
        return None

    async def linked(self, body: dict[str, Any], token: Token) -> dict[str, Any]:
        """A body that goes on from a response of here, with that one's name at its provider."""
        before = body.get("previous_response_id")
        if not isinstance(before, str) or not before.startswith(PREFIX):
            return body
        paper = await self._of(before, token)
        finished = await self._finished(request_of(paper))
        answer = None if finished is None or finished.response is None else finished.response.body
        theirs = answer.get("id") if isinstance(answer, dict) else None
        if not isinstance(theirs, str):
            raise door.wrong(f"{before} has not been answered, so nothing can go on from it")
        return {**body, "previous_response_id": theirs}

    async def _retrieve(self, line: Line, token: Token) -> Whole:
        if door.query(line).get("stream", "false").lower() == "true":
            raise door.wrong(
                "a response in the background is not streamed here", "stream_unsupported"
            )
        return door.said(await self._told(await self._find(line, token)))

    async def _cancel(self, line: Line, token: Token) -> Whole:
        paper = await self._find(line, token)
        request_id = request_of(paper)
        if request_id is not None:
            await self._s.withdraw([request_id])
        return door.said(await self._told(paper))

    async def _delete(self, line: Line, token: Token) -> Whole:
        paper = await self._find(line, token)
        request_id = request_of(paper)
        if request_id is not None:
            await self._s.withdraw([request_id])
            await self._s.store.delivered([request_id])
        await self._s.store.remove_paper(KIND, paper.name)
        return door.said({"id": paper.name, "object": "response", "deleted": True})

    async def _find(self, line: Line, token: Token) -> Paper:
        return await self._of(door.named(line), token)

    async def _of(self, name: str, token: Token) -> Paper:
        paper = await self._s.store.paper(KIND, name) if is_id(name) else None
        if paper is None or paper.owner != token.name:
            raise door.missing("response", name)
        return paper

    async def _finished(self, request_id: int | None) -> Finished | None:
        found = [] if request_id is None else await self._s.store.outcomes([request_id])
        return found[0] if found else None

    async def _told(self, paper: Paper) -> dict[str, Any]:
        said = json.loads(paper.text)
        shown = _shown(paper.name, paper.made_at_ms, said["echo"])
        request_id = request_of(paper)
        finished = await self._finished(request_id)
        if finished is not None:
            return _ended(shown, finished)
        pictures = [] if request_id is None else await self._s.store.pictures([request_id])
        if not pictures:
            raise door.missing("response", paper.name)
        return {**shown, **_waiting(pictures[0])}


def _shown(name: str, made_ms: int, echo: dict[str, Any]) -> dict[str, Any]:
    """What is known of it from the beginning."""
    return {
        "id": name, "object": "response", "created_at": made_ms // 1000, "status": "queued",
        "background": True, "error": None, "incomplete_details": None, "output": [],
        "usage": None, **echo,
    }  # fmt: skip


def _waiting(picture: Picture) -> dict[str, Any]:
    told: dict[str, Any] = {"status": _STATUS.get(picture.state, "queued")}
    if picture.lack is not None:
        lack = picture.lack
        told["scheduler"] = {"reason": str(lack.reason), "budget": lack.budget,
                             "resumes_at_ms": lack.resumes_at_ms}  # fmt: skip
    return told


def _ended(shown: dict[str, Any], finished: Finished) -> dict[str, Any]:
    own = {"cost_usd": decimal_usd(finished.cost_nusd)}
    answer = None if finished.response is None else finished.response.body
    if finished.state is RequestState.SUCCEEDED and isinstance(answer, dict):
        own["provider_response_id"] = str(answer.get("id"))
        told: dict[str, Any] = plain(answer)
        return {**told, "id": shown["id"], "background": True, "scheduler": own}
    status = _STATUS.get(finished.state, "failed")
    error = finished.error or {"code": "expired", "message": "its time was over before it was sent"}
    told = {"code": str(error.get("code")), "message": str(error.get("message"))}
    return {**shown, "status": status, "error": None if status == "cancelled" else told,
            "scheduler": own}  # fmt: skip
