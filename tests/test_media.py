"""Sound, pictures and documents in bodies: tokens by what they are, not by their base64."""

from __future__ import annotations

import base64
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.prices.book import PriceBook
from scheduler.prices.media import Media, document_tokens, picture_size, seconds_of, tiles
from scheduler.prices.tokens import (
    LEAST_SOUND,
    OTHER_IMAGE,
    PER_CONVERSATION,
    TILED_IMAGE,
    TOKENS_A_PAGE,
    bound_input_tokens,
)
from scheduler.request import GENERATE, MESSAGES, RESPONSES, Request

BOOK = PriceBook()
CHAT = "/v1/chat/completions"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def wav(seconds: float, rate=16_000, channels=1, bits=16) -> bytes:
    frame = channels * bits // 8
    data = bytes(int(seconds * rate * frame))
    head = struct.pack("<HHIIHH", 1, channels, rate, rate * frame, frame, bits)
    return (
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<I", 16) + head
        + b"data" + struct.pack("<I", len(data)) + data
    )  # fmt: skip


def mp3(size: int) -> bytes:  # MPEG 1, layer III, 128 kbit/s
    return b"\xff\xfb\x90\x00" + bytes(size - 4)


def png(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def jpeg(width: int, height: int, before=b"\xff\xe1\x20\x00" + bytes(0x1FFE)) -> bytes:
    return b"\xff\xd8" + before + b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", height, width)


def pdf(pages: int, size: int = 0) -> bytes:
    body = b"%PDF-1.4\n" + b"<< /Type /Page /Parent 1 0 R >>\n" * pages
    return body + b"<< /Type /Pages /Kids [] >>" + bytes(max(0, size - len(body)))


def sound(data: bytes, form="wav", model="gpt-4o-audio-preview", **more):
    part = {"type": "input_audio", "input_audio": {"data": b64(data), "format": form}}
    return Request.chat(model, [{"role": "user", "content": [part]}], max_tokens=100, **more)


def count(url, model, part):
    name = "input" if url == RESPONSES else "messages"
    body = {"model": model, name: [{"role": "user", "content": [part]}]}
    return bound_input_tokens(url, body)


def test_half_a_minute_of_sound_is_cents_not_dollars():
    quote = BOOK.tariff("openai").quote(sound(wav(30)))

    assert quote.ceiling_tokens < 1_000
    assert quote.ceiling_nusd < 3 * 10**7
    assert not quote.is_bound


@pytest.mark.parametrize(
    ("data", "kind", "most"),
    [
        (wav(30), "wav", 31),
        (wav(30, 48_000, 2, 24), "audio/wav", 31),
        (wav(30), "", 31),  # by its own first bytes
        (mp3(480_000), "mp3", 120),  # 30 s, if its rate does not vary
        (bytes(24_000 * 2 * 30), "pcm16", 31),
        (bytes(90_000), "audio/ogg; codecs=opus", 121),  # 30 s at 24 kbit/s
        (b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<IHHIIH", 16, 1, 1, 2**31, 9, 9) + bytes(9**5),
         "wav", 31),  # a rate that nobody has
    ],
)  # fmt: skip
def test_sound_is_as_long_as_its_header_says_or_its_format_allows(data, kind, most):
    assert 0 < seconds_of(Media(kind, b64(data), True)) <= most


@pytest.mark.parametrize("model", ["gpt-4o-audio-preview", "qwen3-omni", "voxtral-small-latest"])
def test_sound_is_counted_by_the_second_whatever_the_model(model):
    tokens = bound_input_tokens(CHAT, sound(wav(30), model=model).body).tokens

    assert 300 <= tokens - PER_CONVERSATION <= 32 * 31 + 200
    assert tokens >= PER_CONVERSATION + LEAST_SOUND


FILES = [
    (CHAT, lambda data: {"type": "file", "file": {"filename": "a.pdf", "file_data": data}}),
    (RESPONSES, lambda data: {"type": "input_file", "filename": "a.pdf", "file_data": data}),
]


@pytest.mark.parametrize(("url", "part"), FILES)
@pytest.mark.parametrize("prefix", ["data:application/pdf;base64,", ""])
def test_a_pdf_is_counted_by_its_pages(url, part, prefix):
    found = count(url, "gpt-4o", part(prefix + b64(pdf(20, 1_000_000))))

    assert 20 * TOKENS_A_PAGE <= found.tokens <= 20 * TOKENS_A_PAGE + 500
    assert not found.is_bound


def test_a_pdf_for_claude_is_counted_by_its_pages():
    source = {"type": "base64", "media_type": "application/pdf", "data": b64(pdf(3, 1_000_000))}
    found = count(MESSAGES, "claude-sonnet-4-5", {"type": "document", "source": source})

    assert 3 * TOKENS_A_PAGE <= found.tokens <= 3 * TOKENS_A_PAGE + 500


def test_a_document_of_plain_text_is_counted_as_text():
    source = {"type": "text", "media_type": "text/plain", "data": "x" * 5_000}
    found = count(MESSAGES, "claude-sonnet-4-5", {"type": "document", "source": source})

    assert 5_000 <= found.tokens <= 5_500


@pytest.mark.parametrize(
    ("data", "tokens"),
    [
        (pdf(0, 80_000), 80_000 // 8),  # pages packed away
        (b"%PDF-1.7 /Type /Pages /Count 7 " + bytes(5_000), 7 * TOKENS_A_PAGE),
        (b"%PDF-1.7 /Type /Pages /Count 900000 " + bytes(5_000), TOKENS_A_PAGE),  # no room for them
    ],
)
def test_a_pdf_that_hides_its_pages_is_counted_by_what_else_it_says(data, tokens):
    assert abs(document_tokens(Media("application/pdf", b64(data), True)) - tokens) <= 10


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-mini", "claude-sonnet-4-5"])
def test_an_estimate_is_never_above_what_the_model_takes_in(model):
    data = b64(pdf(0, 6_000_000))
    part = {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{data}"}}
    quote = BOOK.tariff().quote(
        Request.chat(model, [{"role": "user", "content": [part]}], max_tokens=100)
    )

    assert quote.ceiling_tokens == BOOK.rates(model).context_tokens + 100


def test_text_is_counted_whole_beside_an_estimate():
    parts = [
        {"type": "text", "text": "x" * 130_000},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
    ]
    request = Request.chat("gpt-4o", [{"role": "user", "content": parts}], max_tokens=100)

    assert BOOK.tariff("openai").quote(request).ceiling_tokens >= 130_100


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png(1024, 768), (1024, 768)),
        (jpeg(4000, 3000), (4000, 3000)),
        (jpeg(640, 480, b""), (640, 480)),
        (b"GIF89a" + struct.pack("<HH", 300, 200), (300, 200)),
        (b"RIFF\0\0\0\0WEBPVP8X" + bytes(8) + (799).to_bytes(3, "little")
         + (599).to_bytes(3, "little"), (800, 600)),
        (b"RIFF\0\0\0\0WEBPVP8 " + bytes(10) + struct.pack("<HH", 640, 480), (640, 480)),
        (png(0, 5), None),
        (b"\xff\xd8\xff", None),
        (b"nothing", None),
    ],
)  # fmt: skip
def test_a_picture_tells_its_size(data, size):
    assert picture_size(b64(data)) == size


@pytest.mark.parametrize(
    ("size", "count_"),
    [((1024, 1024), 4), ((2048, 4096), 6), ((512, 512), 4), ((8000, 10), 8), ((1, 1), 4)],
)
def test_tiles_are_counted_as_openais_guide_does(size, count_):
    assert tiles(*size) == count_


@pytest.mark.parametrize(
    ("model", "size", "tokens", "is_bound"),
    [
        ("gpt-4o", (1024, 1024), 765, True),
        ("gpt-4o", (9000, 9), TILED_IMAGE, True),
        ("gpt-4o-mini", (1024, 1024), 2_833 + 4 * 5_667, True),
        ("gpt-4.1-mini", (1024, 1024), 1_659, True),
        ("gpt-4.1", (64, 64), 765, True),  # documented as tiles and as patches: the larger
        ("gpt-5", (1024, 1024), 3_523, False),
        ("claude-sonnet-4-5", (200, 200), 260, False),
        ("claude-sonnet-4-5", (8_000, 8_000), OTHER_IMAGE, False),
    ],
)
def test_a_picture_is_counted_by_its_size_and_its_models_rule(model, size, tokens, is_bound):
    url = f"data:image/png;base64,{b64(png(*size))}"
    found = count(CHAT, model, {"type": "image_url", "image_url": {"url": url}})

    assert tokens <= found.tokens - PER_CONVERSATION <= tokens + 40
    assert found.is_bound is is_bound


BIG = b64(png(1000, 1000) + bytes(1_000_000))


@pytest.mark.parametrize(
    ("url", "item"),
    [
        (MESSAGES, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t",
            "content": [{"type": "image", "source": {
                "type": "base64", "media_type": "image/png", "data": BIG}}]}]}),
        (RESPONSES, {"type": "image_generation_call", "id": "i", "result": BIG}),
        (RESPONSES, {"type": "computer_call_output", "output": {
            "type": "computer_screenshot", "image_url": f"data:image/png;base64,{BIG}"}}),
        (RESPONSES, {"type": "function_call_output", "call_id": "c", "output": [
            {"type": "input_image", "image_url": f"data:image/png;base64,{BIG}"}]}),
        (CHAT, {"role": "assistant", "content": "", "images": [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BIG}"}}]}),
        (CHAT, {"role": "assistant", "audio": {"id": "a", "data": b64(wav(30))}}),
        (GENERATE, {"role": "user", "parts": [{"functionResponse": {"name": "f", "parts": [
            {"inlineData": {"mimeType": "image/png", "data": BIG}}]}}]}),
        (CHAT, {"role": "user", "content": [
            {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{b64(wav(30))}"}}]}),
    ],
)  # fmt: skip
def test_media_are_no_text_wherever_they_are(url, item):
    name = {RESPONSES: "input", GENERATE: "contents"}.get(url, "messages")
    found = bound_input_tokens(url, {"model": "gpt-5", name: [item]})

    assert found.tokens < OTHER_IMAGE + 1_000
    assert not found.is_bound


@given(st.text(max_size=60), st.sampled_from(["wav", "application/pdf", "", "audio/mpeg"]))
def test_nothing_that_is_no_media_breaks_counting_it(data, kind):
    for prefix in ("", "data:;base64,", "UklGR", "JVBER", "/9j/", "iVBORw0KGgo"):
        media = Media(kind, prefix + data, True)
        assert picture_size(media.data) is None or min(picture_size(media.data)) > 0
        assert seconds_of(media) >= 0
        assert document_tokens(media) >= 0
