"""What is told of files, batches and responses is of the SDKs' own types, member by member."""

import json

import pytest
from anthropic.types.messages import (
    DeletedMessageBatch,
    MessageBatch,
    MessageBatchIndividualResponse,
)
from openai.types import Batch, FileDeleted, FileObject
from openai.types.responses import Response
from pydantic import TypeAdapter

from tests.server.conftest import MODEL, wait_for
from tests.server.test_batches import begun, client_of, line, over
from tests.server.test_message_batches import asked
from tests.server.test_message_batches import client_of as anthropic_of
from tests.server.test_message_batches import over as message_over

pytestmark = pytest.mark.filterwarnings("default")


def told(gateway, kind, path, body=None):
    """An answer, found to be of its type; what it says beyond that stands in `scheduler`."""
    answer = gateway.ask(body, path)
    assert answer.status == 200, answer.content
    said = answer.json()
    if kind is Response:
        said.pop("usage")  # as the provider has it
    found = TypeAdapter(kind).validate_json(json.dumps(said))
    assert set(found.model_extra or {}) <= {"scheduler"}
    return found


def test_openais(start, provider):
    made = start(provider, budget="$0.15")
    with client_of(made) as client:
        done = over(client, begun(client, line("a")))
        failed = over(client, begun(client, line("a", model="nobody-knows-me")))
        parked = begun(client, line("a", max_tokens=10_000), metadata={"a": "b"})
        wait_for(lambda: made.states()["parked"], "it to be parked")
        late = over(client, begun(client, line("a", max_tokens=10_000), completion_window="1s"))
        statuses = []
        for each in (done, failed, parked, late):
            found = told(made, Batch, f"/v1/batches/{each.id}")
            statuses.append(found.status)
            for name in ("in_progress", "finalizing", "completed", "failed", "expired"):
                instant = getattr(found, f"{name}_at")
                assert instant is None or found.created_at <= instant
        assert statuses == ["completed", "failed", "in_progress", "expired"]
        assert told(made, Batch, f"/v1/batches/{parked.id}/cancel", b"").status in (
            "cancelling",
            "cancelled",
        )
        assert over(client, parked).status == "cancelled"
        assert told(made, Batch, f"/v1/batches/{parked.id}").cancelled_at
        for file in (done.input_file_id, done.output_file_id, late.error_file_id):
            assert told(made, FileObject, f"/v1/files/{file}").status == "processed"
        for name in ("files", "batches"):
            page = made.ask(None, f"/v1/{name}?limit=1").json()
            assert page["first_id"] == page["last_id"] == page["data"][0]["id"]
            assert (page["object"], page["has_more"]) == ("list", True)
        gone = client.files.with_raw_response.delete(done.input_file_id)
        assert TypeAdapter(FileDeleted).validate_json(gone.content).deleted


def test_anthropics(start, provider):
    made = start(provider, budget="$0.15")
    with anthropic_of(made) as client:
        requests = [asked("a"), asked("b", model="nobody-knows-me"), asked("c", max_tokens=10_000)]
        batch = client.messages.batches.create(requests=requests)
        wait_for(lambda: made.states()["parked"], "one to be parked")
        path = f"/v1/messages/batches/{batch.id}"
        assert told(made, MessageBatch, path).processing_status == "in_progress"
        assert told(made, MessageBatch, f"{path}/cancel", b"").cancel_initiated_at
        message_over(client, batch)
        assert told(made, MessageBatch, path).results_url.endswith(f"{path}/results")
        through_tls = made.ask(None, path, x_forwarded_proto="https").json()
        assert through_tls["results_url"] == f"https{made.root.removeprefix('http')}{path}/results"
        lines = made.ask(None, f"{path}/results").content.splitlines()
        found = [TypeAdapter(MessageBatchIndividualResponse).validate_json(each) for each in lines]
        kinds = {each.custom_id: each.result.type for each in found}
        assert kinds == {"a": "succeeded", "b": "errored", "c": "canceled"}
        gone = client.messages.batches.with_raw_response.delete(batch.id)
        assert TypeAdapter(DeletedMessageBatch).validate_json(gone.read()).id == batch.id


def test_responses(start, provider):
    made = start(provider, budget="$0.15")
    body = {"model": MODEL, "input": "hi", "max_output_tokens": 100, "background": True}
    done = told(made, Response, "/v1/responses", body)
    waits = told(made, Response, "/v1/responses", {**body, "max_output_tokens": 10_000})
    path = f"/v1/responses/{done.id}"
    wait_for(lambda: told(made, Response, path).status == "completed", "its end")
    assert told(made, Response, f"/v1/responses/{waits.id}").status == "queued"
    assert told(made, Response, f"/v1/responses/{waits.id}/cancel", b"").status == "cancelled"
    assert json.loads(made.ask(None, path).content)["background"] is True
