"""What a model's tokens cost, in integers; the same rates for quotes and bills.

Rates are in yocto-dollars (1e-24 USD) per token, so every published price is exact:
a dollar per million tokens is 10**18. A cost is summed exactly and rounded up to
nano-dollars once. Prices may step up with the length of the input; a step applies to
all tokens of the call, as providers bill it.

Beside tokens a provider may bill calls, seconds of sound, and what it does itself to
answer: searches, containers for code, pictures.

>>> Rates.parse("0.15/0.60").cost_nusd(Usage(1_000, 100))
210000
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any, NamedTuple

from scheduler.errors import ConfigError
from scheduler.request import Usage

YOCTO_PER_NANO = 10**15
YOCTO_PER_USD = 10**24
YOCTO_PER_USD_A_MILLION = 10**18  # yocto-dollars per token for one dollar per million tokens
MAX_USD_A_MILLION = 100_000  # above it a price was surely meant per token or per thousand

Steps = tuple[tuple[int, int], ...]  # (input tokens above which it holds, yocto-dollars per token)

# What the catalogue has no price for, in USD each; the dearest that providers publish
# (November 2026). A search: Google's. A container for code: OpenAI's of 1 GB, for 20 minutes.
# A picture made by a tool: OpenAI's of high quality.
DEAREST_SEARCH = YOCTO_PER_USD * 35 // 1000
DEAREST_SESSION = YOCTO_PER_USD * 3 // 100
DEAREST_PICTURE = YOCTO_PER_USD * 25 // 100


class Asked(NamedTuple):
    """What a request asks for beside text, at most, as far as its body tells.

    Attributes:
        audio: Tokens of its input that are sound.
    """

    audio: int = 0
    audio_seconds: int = 0
    audio_out: bool = False
    image_out: bool = False
    video_out: bool = False
    web_searches: int = 0
    file_searches: int = 0
    code_sessions: int = 0
    made_images: int = 0


ONLY_TEXT = Asked()


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices of one model.

    A kind of token without a price of its own counts as what it is part of: cached
    input as input, reasoning as output, a picture that is read as the text around it. Where
    providers are known to ask more for a kind, and the catalogue does not say how much, the
    dearest price it lists for that kind stands in, and the field is `guessed`.

    Attributes:
        long_cache_write: For caches kept longer.
        per_call: Yocto-dollars for each call, beside its tokens.
        audio_second: For a second of sound; None: only its tokens are billed.
        context_tokens: The most tokens a call may have; None: not known.
        is_complete: False: the model also bills by something that is not counted here.
        guessed: Names of fields whose price is not known: others' prices stand in.
    """

    input: Steps
    output: Steps = ((0, 0),)
    cache_read: Steps | None = None
    cache_write: Steps | None = None
    long_cache_write: Steps | None = None
    input_audio: Steps | None = None
    output_audio: Steps | None = None
    reasoning: Steps | None = None
    per_call: int = 0
    context_tokens: int | None = None
    is_complete: bool = True
    cache_audio: Steps | None = None
    input_image: Steps | None = None
    cache_image: Steps | None = None
    output_image: Steps | None = None
    input_video: Steps | None = None
    cache_video: Steps | None = None
    output_video: Steps | None = None
    citation: Steps | None = None
    audio_second: int | None = None
    web_search: int = DEAREST_SEARCH
    file_search: int = DEAREST_SEARCH
    code_session: int = DEAREST_SESSION
    made_image: int = DEAREST_PICTURE
    guessed: frozenset[str] = frozenset({"web_search", "file_search", "code_session", "made_image"})
    _dear_input: Steps = field(init=False, repr=False, compare=False)
    _dear_output: Steps = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_dear_input", self._dearest_among(_KINDS_IN))
        object.__setattr__(self, "_dear_output", self._dearest_among(_KINDS_OUT))

    @classmethod
    def parse(cls, price: str, what: str = "price") -> Rates:
        """Read a price of the user's own: ``"IN/OUT"`` or ``"IN/OUT/CACHED"``, USD per million.

        Raises:
            ConfigError: Not such a price, negative, or absurd.
        """
        parts = price.replace("$", "").split("/")
        if not 2 <= len(parts) <= 3:
            raise ConfigError(
                what, f"{price!r} is not IN/OUT in USD per million tokens, like 0.10/0.20"
            )
        steps = [((0, _yocto_per_token(part, what)),) for part in parts]
        return cls(steps[0], steps[1], steps[2] if len(steps) > 2 else None)

    def times(self, factor: Decimal, guess: str = "") -> Rates:
        """The same with tokens and seconds that cost so many times as much.

        Args:
            factor: How many times.
            guess: Named as a guess of that name; empty: it is none.
        """
        dearer: dict[str, Any] = {
            name: tuple((above, _scaled(rate, factor)) for above, rate in getattr(self, name))
            for name in (*_KINDS_IN, *_KINDS_OUT) if getattr(self, name) is not None
        }  # fmt: skip
        if self.audio_second is not None:
            dearer["audio_second"] = _scaled(self.audio_second, factor)
        return replace(self, **dearer, guessed=self.guessed | ({guess} if guess else set()))

    def cost_nusd(self, usage: Usage) -> int:
        """What a call with this usage costs, rounded up to nano-dollars."""
        length, rest_in, rest_out = usage.input_tokens, usage.input_tokens, usage.output_tokens
        total, cached = self.per_call, usage.cached_tokens
        if _has_more(usage):
            in_media, cached, out_media = self._media(usage)
            total += self._beside_nusd(usage)
        else:
            in_media = ((self.input_audio, usage.input_audio_tokens),)
            out_media = ((self.output_audio, usage.output_audio_tokens),)
        # Without a price of their own they are ordinary ones.
        long_written = usage.long_cache_write_tokens if self.long_cache_write is not None else 0
        for steps, count in (
            *in_media,
            (self.cache_read, cached),
            (self.long_cache_write, usage.long_cache_write_tokens),
            (self.cache_write, usage.cache_write_tokens - long_written),
        ):
            if steps is not None and count > 0:
                count = min(count, rest_in)
                rest_in -= count
                total += _at(steps, length) * count
        for steps, count in (
            *out_media,
            (self.reasoning, usage.reasoning_tokens),
            (self.citation, usage.citation_tokens),
        ):
            if steps is not None and count > 0:
                count = min(count, rest_out)
                rest_out -= count
                total += _at(steps, length) * count
        total += _at(self.input, length) * rest_in + _at(self.output, length) * rest_out
        return -(-total // YOCTO_PER_NANO)

    def _media(self, usage: Usage) -> tuple[_Counts, int, _Counts]:
        """Tokens that are no text, the cached ones first; how many cached ones are left; the
        output's.
        """  # noqa: D205
        cached, found = usage.cached_tokens, list[tuple[Steps | None, int]]()
        for kept, fresh, of_cache, whole in (
            (self.cache_audio, self.input_audio,
             usage.cached_audio_tokens, usage.input_audio_tokens),
            (self.cache_image, self.input_image,
             usage.cached_image_tokens, usage.input_image_tokens),
            (self.cache_video, self.input_video,
             usage.cached_video_tokens, usage.input_video_tokens),
        ):  # fmt: skip
            # Sound from the cache is not cheap text from the cache: it costs as sound does.
            steps = kept if kept is not None else fresh
            if steps is not None:
                cached -= of_cache
                found.insert(0, (steps, of_cache))
                whole -= of_cache
            found.append((fresh, whole))
        out = (
            (self.output_audio, usage.output_audio_tokens),
            (self.output_image, usage.output_image_tokens),
            (self.output_video, usage.output_video_tokens),
        )
        return tuple(found), cached, out

    def _beside_nusd(self, usage: Usage | Asked) -> int:
        """Yocto-dollars for what is not counted in tokens."""
        return (
            self.web_search * usage.web_searches
            + self.file_search * usage.file_searches
            + self.code_session * usage.code_sessions
            + self.made_image * usage.made_images
            + (self.audio_second or 0) * usage.audio_seconds
        )

    def plain_nusd(self, input_tokens: int, output_tokens: int, asked: Asked = ONLY_TEXT) -> int:
        """What a call costs whose tokens are all of the ordinary kind, with what is beside them."""
        total = self.per_call + (self._beside_nusd(asked) if asked is not ONLY_TEXT else 0)
        total += _at(self.input, input_tokens) * input_tokens
        total += _at(self.output, input_tokens) * output_tokens
        return -(-total // YOCTO_PER_NANO)

    def most_nusd(self, input_tokens: int, output_tokens: int, asked: Asked = ONLY_TEXT) -> int:
        """The most that a call with up to so many tokens can cost, however they split.

        Guessed prices count only for what is asked.
        """
        total = self.per_call + _at(self._dear_input, input_tokens) * input_tokens
        dear = self._dear_output
        if asked is not ONLY_TEXT:
            total += self._beside_nusd(asked)
            if asked.audio and self.input_audio is not None:
                more = _at(self.input_audio, input_tokens) - _at(self._dear_input, input_tokens)
                total += max(0, more) * asked.audio
            kinds = [
                steps for is_asked, steps in (
                    (asked.audio_out, self.output_audio), (asked.image_out, self.output_image),
                    (asked.video_out, self.output_video),
                ) if is_asked
            ]  # fmt: skip
            dear = dearest_of((dear, *kinds))
        total += _at(dear, input_tokens) * output_tokens
        return -(-total // YOCTO_PER_NANO)

    def unknown(self, asked: Asked) -> str:
        """What a request asks for whose price is not known, in words; empty: nothing."""
        found = [
            words for name, words, is_asked in (
                ("input_audio", "audio it reads", asked.audio > 0),
                ("output_audio", "audio it makes", asked.audio_out),
                ("output_image", "images it makes", asked.image_out),
                ("output_video", "video it makes", asked.video_out),
                ("web_search", "web searches", asked.web_searches > 0),
                ("file_search", "file searches", asked.file_searches > 0),
                ("code_session", "code it runs", asked.code_sessions > 0),
                ("made_image", "images a tool makes", asked.made_images > 0),
            ) if is_asked and name in self.guessed
        ]  # fmt: skip
        return ", ".join(found)

    def _dearest_among(self, names: Iterable[str]) -> Steps:
        return dearest_of(getattr(self, name) for name in names if name not in self.guessed)


_Counts = tuple[tuple[Steps | None, int], ...]
_KINDS_IN = (
    "input", "cache_read", "cache_write", "long_cache_write", "input_audio", "cache_audio",
    "input_image", "cache_image", "input_video", "cache_video",
)  # fmt: skip
_KINDS_OUT = ("output", "output_audio", "output_image", "output_video", "reasoning", "citation")


def _scaled(rate: int, factor: Decimal) -> int:
    above, below = factor.as_integer_ratio()
    return -(-rate * above // below)


def _has_more(usage: Usage) -> bool:
    """Whether it has what few calls have; for all others the sum is short."""
    return bool(
        usage.web_searches or usage.cached_audio_tokens or usage.input_image_tokens
        or usage.output_image_tokens or usage.input_video_tokens or usage.output_video_tokens
        or usage.file_searches or usage.code_sessions or usage.made_images or usage.audio_seconds
    )  # fmt: skip


def _at(steps: Steps, length: int) -> int:
    """The rate for an input of this length."""
    rate = steps[0][1]
    if len(steps) > 1:
        for above, stepped in steps:
            if length > above:
                rate = stepped
    return rate


def dearest_of(kinds: Iterable[Steps | None]) -> Steps:
    """Steps of the highest rate of any kind for an input of any length up to the given one."""
    listed = [steps for steps in kinds if steps is not None]
    highest = max(steps[0][1] for steps in listed)
    dearest = [(0, highest)]
    for above, rate in sorted(step for steps in listed for step in steps[1:]):
        highest = max(highest, rate)
        dearest.append((above, highest))
    return tuple(dearest)


def _yocto_per_token(text: str, what: str) -> int:
    try:
        price = Decimal(text.strip())
    except InvalidOperation:
        raise ConfigError(what, f"{text!r} is not a price in USD per million tokens") from None
    if not price.is_finite() or not 0 <= price <= MAX_USD_A_MILLION:
        raise ConfigError(
            what,
            f"{text!r} is not between 0 and {MAX_USD_A_MILLION:,} USD per million tokens; is it "
            "meant per thousand?",
        )
    return yocto(price)


def yocto(usd_a_million: Decimal) -> int:
    """Yocto-dollars a token; what is finer, which no provider publishes, is rounded up."""
    return int((usd_a_million * YOCTO_PER_USD_A_MILLION).to_integral_value(ROUND_CEILING))
