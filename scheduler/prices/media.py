"""How many tokens are sound, pictures and documents? By what their first bytes say.

A body carries them as base64, and a byte of that is no token. Providers count

    pictures    by their width and height, after shrinking them
    sound       by the second: OpenAI 10 tokens ("Managing costs", Realtime guide),
                Google 32, Mistral 12.5, Qwen 25
    documents   by the page: its text (1,500 to 3,000 tokens, Anthropic's PDF page) and
                a picture of it (1,600; up to 3,000 at the newer models' resolution)

as their guides said in November 2026. Most of these are rules of thumb of theirs, so what comes
out here is an estimate from above, and no bound.
"""

from __future__ import annotations

import binascii
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

TOKENS_A_SECOND = 32
OPENAI_TOKENS_A_SECOND = 10
TOKENS_A_PAGE = 6_000
# Of media that are no pictures: pages of text, seconds of sound and frames of film all have
# more bytes than this a token, unless they are squeezed very hard.
MEDIA_BYTES_PER_TOKEN = 8
LEAST_SOUND = 128  # tokens of a sound, however short
# Bytes a second that nobody goes below: Opus at 6 kbit/s, MP3 at 8; OpenAI's pcm16 is 24 kHz mono.
_LEAST_BYTES_A_SECOND = {"mp3": 1_000, "mpeg": 1_000, "aac": 1_000, "m4a": 1_000, "mp4": 1_000,
                         "flac": 4_000, "pcm16": 48_000}  # fmt: skip
_OTHER_BYTES_A_SECOND = 750
_MOST_BYTES_A_SECOND = 192_000 * 8 * 4  # a sound that claims more is lying
_VARIES = 4  # of an MP3 with a varying rate the first frame may be so much dearer than the mean
_MOST_READ = 12 << 20  # characters of base64 that are looked through for pages
_HEAD = 256 << 10  # characters of base64 in which a picture's size must be


class Media(NamedTuple):
    """What a part of a body carries besides text.

    Attributes:
        kind: Its MIME type or format, in lower case; empty: not told.
        data: Base64, or nothing where it is somewhere else.
        is_here: Whether the body carries it; else it only says where it is.
    """

    kind: str
    data: str
    is_here: bool


_NAMES = ("data", "file_data", "url", "image_url", "video_url", "audio_url", "file_url", "result")
_KINDS = ("format", "media_type", "mime_type", "mimeType", "content_type")
_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)?[^,]{0,200},", re.ASCII)


def find_media(part: Mapping[str, Any]) -> Media:
    """What a part carries, wherever its dialect puts it."""
    kind, data, is_here = "", "", False
    for holder in (part, *(each for each in part.values() if isinstance(each, Mapping))):
        for name in _KINDS:
            if isinstance(holder.get(name), str):
                kind = kind or holder[name].lower()
        for name in _NAMES:
            value = holder.get(name)
            if isinstance(value, str) and len(value) > len(data):
                data = value
        filename = holder.get("filename")
        if isinstance(filename, str) and "." in filename:
            kind = kind or filename.rpartition(".")[2].lower()
    uri = _DATA_URI.match(data)
    if uri is not None:
        kind, data = uri[1] or kind, data[uri.end() :]
        is_here = True
    elif data:
        is_here = "://" not in data[:16]
    return Media(kind, data if is_here else "", is_here)


def without(part: Mapping[str, Any], media: Media) -> dict[str, Any]:
    """The part without what it carries."""

    def kept(value: Any) -> bool:
        return not (isinstance(value, str) and media.data and value.endswith(media.data))

    return {
        name: {key: each for key, each in value.items() if kept(each)}
        if isinstance(value, Mapping) else value
        for name, value in part.items() if kept(value)
    }  # fmt: skip


# Pictures


def picture_size(data: str) -> tuple[int, int] | None:
    """Width and height of a PNG, JPEG, GIF or WebP in base64; None: it does not say."""
    head = _decode(data[:_HEAD])
    if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) >= 24:
        return _plausible(struct.unpack(">II", head[16:24]))
    if head[:4] == b"GIF8" and len(head) >= 10:
        return _plausible(struct.unpack("<HH", head[6:10]))
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and len(head) >= 30:
        return _webp_size(head)
    if head.startswith(b"\xff\xd8"):
        return _jpeg_size(head)
    return None


def _plausible(size: tuple[int, int]) -> tuple[int, int] | None:
    return size if min(size) > 0 else None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8X":
        return (
            int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        )  # fmt: skip
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return _plausible((width & 0x3FFF, height & 0x3FFF))
    return None


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    place = 2
    while place + 9 <= len(head):
        if head[place] != 0xFF:
            return None
        marker = head[place + 1]
        if marker == 0xFF:  # a filler
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", head[place + 5 : place + 9])
            return _plausible((width, height))
        else:
            place += 2 + int.from_bytes(head[place + 2 : place + 4], "big")
    return None


def tiles(width: int, height: int) -> int:
    """Squares of 512 pixels that OpenAI cuts a picture into, at high detail: at most eight.

    It is made to fit 2,048 by 2,048, then its shorter side is made 768.
    """
    long, short = max(width, height), min(width, height)
    if long > 2048:
        long, short = 2048, max(1, -(-short * 2048 // long))
    long, short = -(-long * 768 // short), 768
    return min(8, -(-long // 512) * -(-short // 512))


def patches(width: int, height: int, side: int) -> int:
    """Squares of so many pixels that cover a picture."""
    return -(-width // side) * -(-height // side)


# Sound


def seconds_of(media: Media) -> int:
    """How long a sound can be at most, by its header or by what its format cannot go below."""
    size = len(media.data) * 3 // 4
    kind = media.kind.rpartition("/")[2].removeprefix("x-").removeprefix("vnd.")
    least = next(
        (rate for name, rate in _LEAST_BYTES_A_SECOND.items() if name in kind),
        _OTHER_BYTES_A_SECOND,
    )
    head = _decode(media.data[:_HEAD])
    rate = _wav_rate(head) or _mp3_rate(head) or least
    return -(-size // max(1, min(rate, _MOST_BYTES_A_SECOND)))


def _wav_rate(head: bytes) -> int | None:
    """Bytes a second of a WAV file."""
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    place = 12
    while place + 24 <= len(head):
        size = int.from_bytes(head[place + 4 : place + 8], "little")
        if head[place : place + 4] == b"fmt ":
            code, _, rate, told, frame = struct.unpack("<HHIIH", head[place + 8 : place + 22])
            is_plain = code in (1, 3, 0xFFFE)  # else squeezed, and the file must tell
            return (rate * frame if is_plain else told) or None
        place += 8 + size + size % 2
    return None


_BITRATES = {  # kbit/s of layer III: MPEG 1, then MPEG 2 and 2.5
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}


def _mp3_rate(head: bytes) -> int | None:
    """Bytes a second of an MP3 file at least, by its first frame."""
    place = 0
    if head[:3] == b"ID3" and len(head) > 10:
        tag = head[6:10]
        place = 10 + (tag[0] << 21 | tag[1] << 14 | tag[2] << 7 | tag[3])
    frame = head[place : place + 4]
    if len(frame) < 4 or frame[0] != 0xFF or frame[1] & 0xE6 != 0xE2:
        return None
    rates = _BITRATES[3 if frame[1] >> 3 & 3 == 3 else 2]
    rate = rates[frame[2] >> 4] * 125
    return max(_LEAST_BYTES_A_SECOND["mp3"], rate // _VARIES) if rate else None


# Documents

_PAGE = re.compile(rb"/Type\s*/Page(?![\w])")
_PAGES = re.compile(rb"/Count\s+(\d{1,6})")


def document_tokens(media: Media) -> int:
    """Tokens of a document: a PDF by its pages, all else by its bytes."""
    size = len(media.data) * 3 // 4
    if not ("pdf" in media.kind or media.data.startswith("JVBER")):  # base64 of %PDF
        return size
    pages = 0
    if len(media.data) <= _MOST_READ:
        whole = _decode(media.data)
        # Newer files pack their pages away, but often not the count of them.
        counts = [int(each) for each in _PAGES.findall(whole)]
        pages = max(len(_PAGE.findall(whole)), *counts, 0)
    if not 0 < pages <= max(1, size // 100):  # not told, or more than there is room for
        return max(TOKENS_A_PAGE, size // MEDIA_BYTES_PER_TOKEN)
    return pages * TOKENS_A_PAGE


def _decode(text: str) -> bytes:
    """Bytes from base64, as far as it is any; a beginning is enough."""
    for each in _pieces(text):
        try:
            return binascii.a2b_base64(each)
        except (ValueError, binascii.Error):
            continue
    return b""


def _pieces(text: str) -> Iterator[bytes]:
    ascii_ = text.encode("ascii", "ignore")
    yield ascii_[: len(ascii_) // 4 * 4]
    yield ascii_ + b"=" * (-len(ascii_) % 4)
