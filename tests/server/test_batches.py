"""OpenAI's Batch API by its own SDK: within a budget, parked and raised, cancelled, killed and gone on."""

import asyncio
import io
import json

import openai
import pytest

from tests.server.conftest import MODEL, rests, wait_for

pytestmark = pytest.mark.filterwarnings("default")
OVER = ("completed", "failed", "expired", "cancelled")


def line(key, **body):
    asked = {
        "model": MODEL,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "hi"}],
        **body,
    }
    return {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": asked}


def jsonl(*lines):
    return "".join(json.dumps(each) + "\n" for each in lines).encode()


def client_of(gateway, token=None):
    return openai.OpenAI(base_url=gateway.url, api_key=token or gateway.token, max_retries=0)


def uploaded(client, content, name="in.jsonl"):
    return client.files.create(file=(name, io.BytesIO(content)), purpose="batch")


def begun(client, *lines, **options):
    file = uploaded(client, jsonl(*lines))
    asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h", **options}
    return client.batches.create(input_file_id=file.id, **asked)


def over(client, batch):
    return wait_for(
        lambda: (now := client.batches.retrieve(batch.id)).status in OVER and now, "its end"
    )


def lines_of(client, file_id):
    return [json.loads(each) for each in client.files.content(file_id).text.splitlines()]


def test_a_batch_is_answered_by_the_sdk(start, provider):
    made = start(provider)
    with client_of(made) as client:
        batch = begun(client, *[line(f"k{n}") for n in range(5)], metadata={"for": "test"})
        assert batch.status == "validating"
        done = over(client, batch)

        assert done.status == "completed"
        assert (done.request_counts.total, done.request_counts.completed) == (5, 5)
        assert done.metadata == {"for": "test"}
        assert done.model == MODEL
        assert done.error_file_id is None
        assert done.usage.output_tokens == 50
        assert done.usage.total_tokens == done.usage.input_tokens + 50
        assert done.scheduler["cost_usd"] == "0.05"
        assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
        results = lines_of(client, done.output_file_id)
        assert sorted(each["custom_id"] for each in results) == [f"k{n}" for n in range(5)]
        for each in results:
            assert each["error"] is None
            assert each["response"]["status_code"] == 200
            assert each["response"]["body"]["choices"][0]["message"]["content"]
        file = client.files.retrieve(done.output_file_id)
        assert file.bytes == len(client.files.content(file.id).content)
        assert file.purpose == "batch_output"
    assert float(made.budget()["posted_usd"]) == 0.05


async def test_and_by_the_async_one(start, provider):
    made = start(provider)
    async with openai.AsyncOpenAI(base_url=made.url, api_key=made.token) as client:
        file = await client.files.create(file=jsonl(line("a")), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        while (batch := await client.batches.retrieve(batch.id)).status not in OVER:
            pass
        content = await client.files.content(batch.output_file_id)
        assert json.loads(content.text)["custom_id"] == "a"


def test_what_does_not_fit_is_parked_and_goes_on_after_a_raise(start, provider):
    made = start(provider, budget="$0.13")
    with client_of(made) as client:
        batch = begun(client, *[line(f"k{n}") for n in range(8)])
        wait_for(lambda: rests(made) == 4, "it to be parked")
        now = client.batches.retrieve(batch.id)

        assert now.status == "in_progress"
        assert now.request_counts.completed == 4  # of ten cents each there must be room for
        assert now.scheduler["parked"] == 4
        assert now.scheduler["budget"] == "default"
        assert "larger" in now.scheduler["reason"] or "window_spent" in now.scheduler["reason"]
        assert "scheduler budget set" in now.scheduler["message"]
        made.cli("budget", "set", "default", "$10")
        done = over(client, batch)
        assert (done.status, done.request_counts.completed) == ("completed", 8)
    assert float(made.budget()["posted_usd"]) == 0.08


def test_killed_in_the_middle_it_goes_on_where_it_was(start, slow):
    made = start(slow, "--concurrency", "2", budget="$10")
    billed = slow.billed()["received"]
    with client_of(made) as client:
        batch = begun(client, *[line(f"k{n}") for n in range(6)])
        wait_for(lambda: made.states()["succeeded"] >= 2, "some of it")
    made.kill()
    made.start()
    with client_of(made) as client:  # its own token is another one now, of the same name
        done = over(client, batch)
        keys = [each["custom_id"] for each in lines_of(client, done.output_file_id)]
        assert len(keys) == len(set(keys)) == done.request_counts.completed
        failed = [] if done.error_file_id is None else lines_of(client, done.error_file_id)
        assert len(keys) + len(failed) == 6
    # What was under way is not known to have been answered: it counts, and is asked again.
    assert slow.billed()["received"] - billed <= 8
    made.cli("audit")  # which fails if any balance is not what its reservations say


def test_killed_while_its_lines_are_read(start, provider):
    made = start(provider, budget="$0.05")
    count = 3_000
    with client_of(made) as client:
        batch = begun(client, *[line(f"k{n}", max_tokens=100) for n in range(count)])
        wait_for(lambda: made.states()["parked"], "some of its lines", 60)
    made.kill()
    made.start()
    with client_of(made) as client:
        wait_for(lambda: made.states()["parked"] == count, "all of its lines", 60)
        batch = client.batches.retrieve(batch.id)
        assert (batch.status, batch.request_counts.total) == ("in_progress", count)
        assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
        done = over(client, batch)
        assert (done.status, done.request_counts.failed) == ("cancelled", count)
    assert made.budget()["posted_usd"] in ("0", "0.00")


def test_cancelled_what_waits_ends_and_what_runs_is_answered(start, held):
    made = start(held, "--concurrency", "2", budget="$10")
    with client_of(made) as client:
        batch = begun(client, *[line(f"k{n}") for n in range(9)])
        wait_for(lambda: made.states()["running"] == 2, "two to run")
        cancelled = client.batches.cancel(batch.id)
        assert cancelled.status in ("cancelling", "cancelled")
        wait_for(lambda: made.states()["cancelled"] == 7, "what waits to end")
        held.go_on()
        done = over(client, batch)

        assert done.status == "cancelled"
        answered = lines_of(client, done.output_file_id)
        dropped = lines_of(client, done.error_file_id)
        assert len(answered) + len(dropped) == 9
        assert len(answered) == 2
        assert {each["error"]["code"] for each in dropped} == {"batch_cancelled"}
        assert client.batches.cancel(batch.id).status == "cancelled"  # again: it stays so
    assert float(made.budget()["posted_usd"]) == pytest.approx(0.01 * len(answered))


@pytest.mark.parametrize(
    ("content", "code", "number"),
    [
        (b"", "empty_file", None),
        (b"\n \n", "empty_file", None),
        (jsonl(line("a")) + b"{not json}\n", "invalid_json_line", 2),
        (jsonl(line("a"), {**line("b"), "custom_id": 7}), "invalid_custom_id", 2),
        (jsonl(line("a"), line("a")), "duplicate_custom_id", 2),
        (jsonl({**line("a"), "method": "GET"}), "invalid_method", 1),
        (jsonl({**line("a"), "url": "/v1/embeddings"}), "mismatched_url", 1),
        (jsonl({**line("a"), "body": []}), "invalid_body", 1),
        (jsonl(line("a", model=None)), "missing_model", 1),
        (jsonl(line("a", stream=True)), "stream_unsupported", 1),
        (jsonl(line("a", model="nobody-knows-me")), "price_unknown", 1),
    ],
)
def test_a_file_with_a_wrong_line_fails_whole_and_says_which(
    start, provider, content, code, number
):
    made = start(provider)
    with client_of(made) as client:
        file = uploaded(client, content)
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        done = over(client, batch)
        assert done.status == "failed"
        (error,) = done.errors.data
        assert (error.code, error.line) == (code, number)
        assert error.message
    assert sum(made.states().values()) == 0


def test_files_are_kept_byte_for_byte_listed_and_removed(start, provider):
    made = start(provider)
    content = b"\xef\xbb\xbf" + jsonl(line("été ☃")) + b"\r\n" + jsonl(line("b"))[:-1]
    with client_of(made) as client:
        files = [uploaded(client, content, f"n{n}.jsonl") for n in range(3)]
        assert client.files.content(files[0].id).content == content
        assert client.files.retrieve(files[0].id).bytes == len(content)
        assert [each.id for each in client.files.list()] == [each.id for each in reversed(files)]
        page = client.files.list(limit=1, order="asc")
        assert [each.id for each in page] == [each.id for each in files]  # page after page
        assert client.files.delete(files[0].id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(files[0].id)
        done = over(client, begun_with(client, files[1].id))
        assert done.request_counts.completed == 2


def begun_with(client, file_id):
    return client.batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
    )


def test_a_token_sees_nothing_of_anothers_and_cannot_leave_its_budget(start, provider):
    made = start(provider, budget="$1")
    made.cli("budget", "set", "ann", "$0.12", "--create")
    ann = made.cli("token", "create", "ann", "--budget", "ann").strip().splitlines()[-1]
    bob = made.cli("token", "create", "bob").strip().splitlines()[-1]
    with client_of(made, ann) as hers, client_of(made, bob) as his:
        file = uploaded(hers, jsonl(*[line(f"k{n}") for n in range(9)]))
        with pytest.raises(openai.NotFoundError):
            his.files.content(file.id)
        with pytest.raises(openai.NotFoundError):
            begun_with(his, file.id)
        batch = begun_with(hers, file.id)
        for refused in (his.batches.retrieve, his.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                refused(batch.id)
        assert list(his.batches.list()) == []
        assert [each.id for each in hers.batches.list()] == [batch.id]
        wait_for(lambda: hers.batches.retrieve(batch.id).request_counts.completed == 3, "her share")
        with pytest.raises(openai.ConflictError, match="has not ended"):
            hers.files.delete(file.id)
        with pytest.raises(openai.BadRequestError, match="bound to 'ann'"):
            begun(hers, line("x"), extra_headers={"X-Scheduler-Budget": "default"})
    assert float(made.budget("ann")["posted_usd"]) == 0.03
    assert float(made.budget("default")["posted_usd"]) == 0


def test_a_window_that_is_meant_drops_what_was_not_sent_by_then(start, provider):
    made = start(provider, budget="$0.11")
    with client_of(made) as client:
        batch = begun(client, *[line(f"k{n}") for n in range(4)], completion_window="3s")
        assert batch.expires_at == batch.created_at + 3
        done = over(client, batch)
        assert done.status == "expired"
        assert (done.request_counts.completed, done.request_counts.failed) == (2, 2)
        codes = {each["error"]["code"] for each in lines_of(client, done.error_file_id)}
        assert codes == {"batch_expired"}
        with pytest.raises(openai.BadRequestError):
            begun(client, line("a"), completion_window="soon")


@pytest.mark.parametrize("purpose", ["assistants", "user_data"])
def test_files_for_other_things_are_refused(start, provider, purpose):
    made = start(provider)
    with client_of(made) as client, pytest.raises(openai.BadRequestError, match="for batches only"):
        client.files.create(file=b"x", purpose=purpose)


def test_what_is_no_form_or_no_text_is_refused(start, provider):
    made = start(provider)
    assert made.ask({"a": 1}, "/v1/files").status == 400
    broken = b"--x\r\nnothing"
    assert (
        made.ask(broken, "/v1/files", content_type="multipart/form-data; boundary=x").status == 400
    )
    assert made.ask(b"", "/v1/files", content_type="multipart/form-data").status == 400
    with client_of(made) as client, pytest.raises(openai.BadRequestError, match="no UTF-8"):
        client.files.create(file=b"\xff\xfe\n", purpose="batch")
    other = b'--y\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--y--\r\n'
    answer = made.ask(other, "/v1/files", content_type="multipart/form-data; boundary=x")
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")
    with client_of(made) as client:
        assert list(client.files.list()) == []
    assert "boundary" not in made.end()


def test_one_who_asks_again_after_a_lost_answer_gets_the_same_batch(start, provider):
    made = start(provider)
    again = {"x-stainless-retry-count": "1"}
    with client_of(made) as client:
        batch = begun(client, line("a"))
        same = {"input_file_id": batch.input_file_id, "endpoint": batch.endpoint,
                "completion_window": "24h"}  # fmt: skip
        assert client.batches.create(**same, extra_headers=again).id == batch.id
        other = client.batches.create(**same, metadata={"other": "one"}, extra_headers=again)
        meant = client.batches.create(**same)  # not by itself: it is meant
        assert len({batch.id, other.id, meant.id}) == 3
        for each in (batch, other, meant):
            assert over(client, each).status == "completed"
    assert float(made.budget()["posted_usd"]) == 0.03


def test_what_was_read_to_the_end_may_be_forgotten_and_nothing_else(start, provider):
    made = start(provider)
    with client_of(made) as client:
        done = over(client, begun(client, *[line(f"k{n}") for n in range(3)]))
        made.ask()  # the newest request of all stays

        def left():
            made.cli("prune", "--before", "0s")
            return len(lines_of(client, done.output_file_id))

        with client.files.with_streaming_response.content(done.output_file_id) as answer:
            assert answer.status_code == 200
        made.cli("prune", "--before", "0s")
        assert left() in (0, 3)  # a short one may have been sent whole before its reader left
        wait_for(lambda: left() == 0, "them to be forgotten")


def test_files_and_results_expire_where_it_was_asked_for(start, provider):
    made = start(provider)
    with client_of(made) as client:
        file = client.files.create(
            file=jsonl(line("a")), purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )  # fmt: skip
        assert file.expires_at == file.created_at + 3600
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
            output_expires_after={"anchor": "created_at", "seconds": 7200},
        )  # fmt: skip
        output = client.files.retrieve(over(client, batch).output_file_id)
        assert output.expires_at == output.created_at + 7200
        for wrong in ({"anchor": "now", "seconds": 3600}, {"anchor": "created_at", "seconds": 1}):
            with pytest.raises(openai.BadRequestError, match="expires_after"):
                client.files.create(file=b"x", purpose="batch", expires_after=wrong)


async def test_what_has_expired_or_was_half_uploaded_is_let_go():
    from scheduler.server.batches.shelf import HALF_DONE_MS, Shelf, new_file
    from scheduler.stores import open_store

    async def pieces(*texts):
        for each in texts:
            yield each

    store = open_store(None)
    await store.open(0)
    shelf = Shelf(store)
    stays = await shelf.take(new_file("ann", "a", "batch", 0), pieces(b"1\n", b"2"))
    ends = await shelf.take(new_file("ann", "b", "batch", 0, expires_ms=50), pieces(b"3\n"))
    half = new_file("ann", "c", "batch", 0)
    await store.add_paper(half.as_paper(is_open=True))
    await store.write_page("file", half.id, 0, "4\n")

    assert {each.id for each in await shelf.listed("ann", 9, None, True, None)} == {
        stays.id,
        ends.id,
    }
    assert await shelf.find(ends.id, "ann", 49) == ends
    assert await shelf.find(half.id, "ann", 49) is None
    assert await shelf.find(stays.id, "bob", 49) is None
    await shelf.tidy(50)
    assert await shelf.find(ends.id, "ann", 40) is None
    assert await store.pages("file", half.id) == [(0, "4\n")]
    await shelf.tidy(HALF_DONE_MS + 1)
    assert await store.pages("file", half.id) == []
    assert [page async for page in shelf.pages(stays.id)] == ["1\n2"]


def test_a_program_within_a_budget_sends_batches_too(provider, tmp_path):
    import subprocess
    import sys

    from tests.server.conftest import PRICE

    script = tmp_path / "old.py"
    script.write_text(f"""
import time, openai
client = openai.OpenAI()
file = client.files.create(file={jsonl(line("a"), line("b"))!r}, purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions",
                              completion_window="24h")
while (batch := client.batches.retrieve(batch.id)).status != "completed":
    time.sleep(0.05)
print(client.files.content(batch.output_file_id).text.count("\\n"))
""")
    done = subprocess.run(
        [sys.executable, "-m", "scheduler", "run", "--base-url", provider.url, "--price", PRICE,
         "--budget", "$1", "--", sys.executable, str(script)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "2\n", done.stderr
    assert "2 calls answered, $0.02 spent" in done.stderr


@pytest.mark.parametrize("leaves_after", [0, 1, 2, None])
async def test_what_is_streamed_is_read_only_if_its_reader_was_there_to_the_end(leaves_after):
    from scheduler.server.batches.door import streamed
    from scheduler.server.line import Line

    told, gone = [], asyncio.Event()
    if leaves_after == 0:
        gone.set()

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        told.append(message)

    async def pieces():
        for number in (1, 2):
            await asyncio.sleep(0)
            yield b"%d\n" % number
            if number == leaves_after:
                gone.set()
            for _ in range(3):
                await asyncio.sleep(0)

    asked = {"type": "http", "method": "GET", "path": "/", "headers": []}
    was_there = await streamed(Line(asked, receive, send), b"text/plain", pieces())

    assert was_there is (leaves_after is None)
    assert (told[-1].get("more_body") is False) is was_there  # else nobody takes it for whole
