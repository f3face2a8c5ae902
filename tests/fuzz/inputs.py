"""Near-valid input: examples that parse, and what small changes make of them."""

from __future__ import annotations

import json

from hypothesis import strategies as st

ODD = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n", b"NaN", b"-Infinity", b"1e400",
    b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"\\ud800", b'"', b"{", b"}", b"\xc2\xb2", b"null",
]  # fmt: skip

LINES = [
    b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}',
    b'{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":5}',
    b'{"prompt":"hi","temperature":0.5}\r\n',
    b'{"model":"m","input":["a","b"]}',
]
FILES = [
    b'[{"custom_id":1,"params":{"model":"m","messages":[],"system":"s"}},\n {"id":2,"prompt":"x","label":null}]',
    b'{"requests":[{"url":"/openai/deployments/d/embeddings","body":{"input":"x"}}]}',
]
CONTENTS = [  # Google's bodies
    b'{"contents":[{"role":"user","parts":[{"text":"hi"},{"inlineData":{"mimeType":"image/png","data":'
    b'"AA=="}}]}],"generationConfig":{"maxOutputTokens":5,"candidateCount":2},"tools":[{"functionDeclarations":'
    b'[{"name":"f"}]}]}',
    b'{"requests":[{"content":{"parts":[{"text":"a"}]}}]}',
]
BUDGETS = [
    "$5/hour, $50/day, 2M tokens/day", "$100/month @Europe/Athens from 15", "none requests/day",
    "$1,000/week from mon", "500 requests/30s", "5 usd", "$3/year from 04-01", ".5k tokens/minute",
]  # fmt: skip
AMOUNTS = ["$5", "0.25", "1,000.5 usd", ".5", "1_000", "$ 7"]
SPANS = ["90s", "1h30m", "500ms", "2.5 d", "1w", "10 m 5 s"]
PRICES = ["m=0.1/0.2", "m=1/2/0.5", "a=b=$3/$4", "m=1e2/0"]
URLS = [
    "http://127.0.0.1:9/v1", "https://api.openai.com/v1", "http://[::1]:80", "sim:",
    "sim:latency=0.2,seed=7,error_rate=0.1", "sim:rpm=60,tpm=1000",
    "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
]  # fmt: skip
ANSWERS = [
    b'{"id":"c","choices":[{"message":{"content":"hi"}}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11,"cost":0.001}}',
    b'{"output":[{"content":[{"text":"x"}]}],"usage":{"input_tokens":3,"output_tokens":1,'
    b'"input_tokens_details":{"cached_tokens":2}}}',
    b'{"error":{"message":"slow down","type":"requests","code":"rate_limit_exceeded"}}',
    b'{"detail":[{"msg":"bad"}]}',
    b"<html>Bad gateway</html>",
    b'{"candidates":[{"content":{"parts":[{"text":"x"}]}}],"usageMetadata":{"promptTokenCount":3,'
    b'"candidatesTokenCount":1,"totalTokenCount":5,"promptTokensDetails":[{"modality":"AUDIO","tokenCount":1}]}}',
]

STREAMS = [
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
    b"data: [DONE]\n\n",
    b'event: response.completed\r\ndata: {"type":"response.completed","response":{"id":"r"}}\r\n\r\n',
    b'event: message_start\ndata: {"type":"message_start","message":{"type":"message","content":[],'
    b'"usage":{"input_tokens":1}}}\n\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"tool_use","input":{}}}\n\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"partial_json":"{}"}}\n\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}\n\n',
    b'data: {"candidates":[{"content":{"parts":[{"text":"h"}]}}]}\r\n\r\ndata: {"candidates":[{"content":'
    b'{"parts":[{"text":"i"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":1}}\r\n\r\n',
]
CONFIGS = [
    b'[provider.x]\nkind = "vllm"\nmax_requests_per_minute = 5\nprice = "0/0"\n',
    b'[route]\n"a*" = "x"\n[provider.x]\nkind = "ollama"\n[defaults]\nprovider = "x"\n',
    b'[provider.openai.models."gpt-4o"]\nmax_tokens_per_minute = 30_000\n',
]

scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(min_value=10**20)
    | st.floats() | st.text(max_size=8) | st.sampled_from(["\ud800", "9" * 5000, "1e400"])
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@st.composite
def near(draw: st.DrawFn, examples: list[bytes]) -> bytes:
    """An example after up to three cuts, repeats or odd insertions."""
    data = draw(st.sampled_from(examples))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        upto = draw(st.integers(at, min(len(data), at + 12)))
        piece = draw(st.sampled_from([b"", data[at:upto] * 2, *ODD]) | st.binary(max_size=3))
        data = data[:at] + piece + data[upto:]
    return data


@st.composite
def near_text(draw: st.DrawFn, examples: list[str]) -> str:
    changed = draw(near([text.encode() for text in examples]))
    return changed.decode("utf-8", draw(st.sampled_from(["replace", "surrogateescape"])))


@st.composite
def changed_json(draw: st.DrawFn, examples: list[bytes]) -> dict[str, object]:
    """A JSON example with some of its fields, at any depth, set to anything."""
    body = json.loads(draw(st.sampled_from(examples)))
    for _ in range(draw(st.integers(1, 3))):
        place = body
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys)) if keys else None
            below = None if key is None else place[key]
            if key is None or not isinstance(below, dict | list) or draw(st.booleans()):
                break
            place = below
        if key is not None:
            place[key] = draw(values)
    return body
