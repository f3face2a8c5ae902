"""Odd texts in files, ids and bodies of batches: each is refused or answered, none makes the gateway fail."""

import json
import random

import openai
import pytest

from scheduler.server.batches.members import members
from tests.server.conftest import wait_for
from tests.server.test_batches import begun, begun_with, client_of, jsonl, line, over, uploaded
from tests.server.test_message_batches import asked
from tests.server.test_message_batches import client_of as anthropic_of
from tests.server.test_message_batches import over as message_over

pytestmark = pytest.mark.filterwarnings("default")


def anything(dice, depth=0):
    kind = dice.randrange(4 if depth > 3 else 6)
    if kind < 4:
        return dice.choice([None, True, -7, 1.5, "", 'a"]},\\', "\ud800", "é☃"])
    some = [anything(dice, depth + 1) for _ in range(dice.randrange(4))]
    return some if kind == 4 else {f"k{n}": each for n, each in enumerate(some)}


def test_members_are_those_that_json_has():
    dice = random.Random(7)
    for _ in range(300):
        body = {"a": anything(dice), "b": [anything(dice) for _ in range(dice.randrange(4))]}
        if dice.random() < 0.5:
            body = dict(reversed(body.items()))
        indent = dice.choice([None, 0, 2])
        text = json.dumps(body, indent=indent, ensure_ascii=dice.random() < 0.5)
        assert list(members(text, "b")) == body["b"]
        broken = text[: dice.randrange(len(text))] + dice.choice(["", "]", "}", ",", ":", "x"])
        try:
            expected = json.loads(broken).get("b", [])
        except ValueError:
            with pytest.raises(ValueError):  # noqa: PT011
                list(members(broken, "b"))
        else:
            assert list(members(broken, "b")) == expected


@pytest.mark.parametrize("text", ["{}", ' {"a": 1} ', '{"b": {}}', '{"b": 5}', '{"b": []}'])
def test_no_members(text):
    assert list(members(text, "b")) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{} x", '{"b": [1,]}', '{"b": [1],}', '{"b": [1], "b": [2]}', '{b: [1]}',
             '{1: [1]}', '{"b" [1]}', '{"b": [1 2]}', "{" * 9],
)  # fmt: skip
def test_what_is_no_object(text):
    with pytest.raises(ValueError):  # noqa: PT011
        list(members(text, "b"))


def test_names_that_nothing_has(start, provider):
    made = start(provider)
    for name in ("\ud800", "\0", "x" * 1_000):
        body = {"input_file_id": name, "endpoint": "/v1/chat/completions"}
        assert made.ask(body, "/v1/batches").status == 404
        asked_for = {"model": "sim-small", "input": "hi", "previous_response_id": f"resp_bg_{name}"}
        assert made.ask(asked_for, "/v1/responses").status == 404
    for path in ("files", "batches", "messages/batches", "responses"):
        assert made.ask(None, f"/v1/{path}/%ED%A0%80").status == 404
    for path in ("files?after", "batches?after", "messages/batches?after_id"):
        answer = made.ask(None, f"/v1/{path}=%00")
        assert (answer.status, answer.json()["data"]) == (200, [])


def test_half_characters_are_told_as_what_they_are_not(start, provider):
    made = start(provider)
    with client_of(made) as client:
        done = over(client, begun(client, line("a", model="\ud800")))
        assert (done.status, done.model) == ("failed", "\ufffd")
        file = uploaded(client, jsonl(line("b")))
        body = {
            "input_file_id": file.id, "endpoint": "/v1/chat/completions",
            "metadata": {"\ud800": "\udc00"},
        }  # fmt: skip
        answer = made.ask(body, "/v1/batches")
        assert (answer.status, answer.json()["metadata"]) == (200, {"\ufffd": "\ufffd"})


def test_a_nul_is_in_no_file(start, provider):
    made = start(provider)
    with client_of(made) as client, pytest.raises(openai.BadRequestError, match="NUL"):
        uploaded(client, b"{}\n\0\n")


def test_lines_may_end_in_many_ways(start, provider):
    made = start(provider)
    a, b = (json.dumps(line(key)).encode() for key in "ab")
    with client_of(made) as client:
        for content in (
            a + b"\r\n" + b,
            b"\xef\xbb\xbf" + a + b"\n" + b + b"\r\n",
            b"\n\n" + a + b"\n \n\n" + b,
        ):
            done = over(client, begun_with(client, uploaded(client, content).id))
            assert (done.status, done.request_counts.completed) == ("completed", 2)


def test_what_message_batches_ask_is_no_file_of_anybodys(start, provider):
    made = start(provider)
    with anthropic_of(made) as client, client_of(made) as files:
        batch = client.messages.batches.create(requests=[asked("a")])
        assert list(files.files.list()) == []
        message_over(client, batch)
        left = (
            "SELECT (SELECT count(*) FROM pages), (SELECT count(*) FROM papers WHERE kind = 'file')"
        )
        wait_for(lambda: rows(made, left) == [(0, 0)], "what it asked to be forgotten")
        assert [each.result.type for each in client.messages.batches.results(batch.id)] == [
            "succeeded"
        ]


def rows(made, statement):
    import contextlib
    import sqlite3

    with contextlib.closing(sqlite3.connect(made.folder / made.store)) as db:
        return db.execute(statement).fetchall()


async def test_a_file_that_is_still_needed_stays_for_those_who_need_it():
    from scheduler.server.batches.shelf import HALF_DONE_MS, Shelf, new_file
    from scheduler.stores import open_store

    async def pieces():
        yield b"1\n"

    store = open_store(None)
    await store.open(0)
    shelf = Shelf(store)
    ends = await shelf.take(new_file("ann", "a", "batch", 0, expires_ms=50), pieces())
    draft = await shelf.take(new_file("", "b", "message_batch", 0), pieces(), is_whole=False)
    late_ms = HALF_DONE_MS + 1
    await shelf.tidy(late_ms, {ends.id, draft.id})
    for each in (ends, draft):
        assert await shelf.find(each.id, each.owner, late_ms) is None
        assert [text async for text in shelf.lines(each.id)] == [(1, "1")]
    await shelf.settle(draft)
    await shelf.tidy(late_ms)
    assert [text async for text in shelf.lines(ends.id)] == []
    assert [text async for text in shelf.lines(draft.id)] == [(1, "1")]
