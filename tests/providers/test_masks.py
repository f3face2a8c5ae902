"""What a service repeats of a key is shown in no part; ordinary words stay."""

from __future__ import annotations

import json
import random
import string
import time

import pytest

from scheduler.errors import ProviderError
from scheduler.providers.answers import read_answer
from scheduler.providers.hidden import Secrets
from scheduler.providers.masks import HIDDEN, hide

RANDOM = random.Random(11)


def of(alphabet: str, count: int) -> str:
    return "".join(RANDOM.choices(alphabet, k=count))


BASE62, HEX = string.ascii_letters + string.digits, string.digits + "abcdef"
KEYS = {
    "OpenAI's": ("sk-", of(BASE62, 48)),
    "of a project": ("sk-proj-", of(BASE62 + "-_", 120)),
    "Anthropic's": ("sk-ant-api03-", of(BASE62 + "-_", 90)),
    "Google's": ("AIzaSy", of(BASE62, 33)),
    "Groq's": ("gsk_", of(BASE62, 52)),
    "OpenRouter's": ("sk-or-v1-", of(HEX, 64)),
    "Azure's": ("", of(HEX, 32)),
    "a UUID": ("", "-".join(of(HEX, n) for n in (8, 4, 4, 4, 12))),
    "a short one": ("sk-", of(BASE62, 16)),
}
REST = ["…", "...", "****", "*" * 40, " ... ", "•••", "[...]", "xxxx", "<redacted>"]


@pytest.fixture(params=KEYS, ids=str)
def key(request):
    return KEYS[request.param]


def shown(text: str, secret: str) -> str:
    """What a service's words become on their way to an error."""
    body = {"error": {"message": text, "code": "invalid_api_key", text: [text]}}
    with pytest.raises(ProviderError) as caught:
        read_answer(400, {"x-request-id": text}, json.dumps(body).encode(), Secrets([secret]))
    return f"{caught.value} {caught.value.body} {caught.value.request_id}"


@pytest.mark.parametrize("rest", REST)
def test_a_key_with_something_in_place_of_its_middle_is_hidden(key, rest):
    public, body = key
    for first, last in ((3, 4), (4, 4), (0, 4), (8, 0), (1, 8), (12, 2)):
        said = shown(f"wrong key: {public}{body[:first]}{rest}{body[-last:] if last else ''}, see docs",
                     public + body)  # fmt: skip
        assert HIDDEN in said
        assert "see docs" in said
        assert last == 0 or body[-last:] not in said.replace("invalid_api_key", "")
        assert first < 3 or body[:first] not in said


@pytest.mark.parametrize("count", [8, 9, 12, 16])
def test_a_part_of_a_key_is_hidden_wherever_it_is_from(key, count):
    public, body = key
    for start in range(0, len(body) - count + 1, 5):
        part = body[start : start + count]
        said = shown(f'key "{part}" is wrong', public + body)
        assert part not in said, (part, said)
        assert "is wrong" in said


def test_the_first_twenty_characters_are_hidden_but_for_how_all_keys_begin(key):
    public, body = key
    first = (public + body)[:20]
    said = hide(f"{first}: starts with {first} and so on", Secrets([public + body]))

    assert body[:4] not in said
    assert said.endswith(f"{HIDDEN} and so on")


def test_a_part_of_an_authorization_header_is_hidden_too():
    secret = "Bearer sk-proj-Q9zL4mT7vX2bN8kR5wYd"
    assert hide("got Bearer sk-proj-Q9zL4mT7", Secrets([secret])) == f"got Bearer sk-proj-{HIDDEN}"


@pytest.mark.parametrize("text", [
    "Incorrect API key provided: sk-proj-... You can find yours at https://platform.openai.com/keys.",
    "keys begin with sk-ant-api03-, AIzaSy, sk-or-v1- or gsk_ …",
    "the organization must be verified to use the model gpt-4o-2024-08-06 (production) ... xxx",
    "Rate limit reached for gpt-4o in organization org-abcdef on tokens per min: Limit 30000, Used 29999.",
    '{"error": {"message": "***", "type": "invalid_request_error", "param": null, "code": null}}',
])  # fmt: skip
def test_ordinary_words_are_left(text, key):
    assert hide(text, Secrets(["".join(key), f"Bearer {''.join(key)}"])) == text


@pytest.mark.parametrize("secret", [
    "my-production-service", "https://example.com/production/app", "Production Application",
    "2024-10-01-preview", "organization", "JavaScriptClient",
])  # fmt: skip
def test_parts_of_a_header_that_is_words_are_left(secret):
    text = (
        "the production application of your organization at example.com, 2024-10-01, in JavaScript"
    )
    assert hide(text, Secrets([secret])) == text.replace(secret, HIDDEN)


def test_words_within_a_key_are_left_where_they_stand_alone():
    secret = "sk-customer-production-Q9zL4mT7vX2bN8kR5wYd"

    assert hide("no production customer", Secrets([secret])) == "no production customer"
    assert "Q9zL" not in hide(f"no {secret[:24]}", Secrets([secret]))
    assert "customer" not in hide(f"no {secret[3:30]}", Secrets([secret]))


def test_it_takes_no_time_that_anybody_notices():
    secrets = Secrets([f"sk-proj-{of(BASE62, 150)}", f"Bearer {of(BASE62, 150)}", of(HEX, 64)])
    text = of(BASE62 + " .…*", 16_384)
    started = time.perf_counter()
    hide(text, secrets)
    assert time.perf_counter() - started < 0.5
