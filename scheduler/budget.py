"""Budgets: named limits over windows, in dollars, tokens or requests.

A budget is written as one or more caps, separated by commas:

    budget := cap { "," cap } [ "risk" preset ]
    cap    := amount [ "/" window ] [ "@" zone ] [ "from" anchor ] [ "paced" [ profile ] ] [ keep ]
    amount := "$5" | "5 usd" | "2M tokens" | "500 requests" | "none"
    window := minute | hour | day | week | month | year     calendar, in the zone (default UTC)
            | 90s | 30m | 24h | 7d                           rolling
            | total                                          everything ever; the default
    anchor := 06:00 (day) | mon (week) | 15 (month) | 04-01 (year)
    profile := 09:00-18:00 | 24 digits, one for each hour of the day; evenly without
    keep   := "keep" percent "for" priority { "and" percent "for" priority }
    preset := none | low | default | high

A zone, an anchor, a pace and what is kept belong to the cap they follow. A paced cap is spent bit by bit
(`pace`); what a cap keeps for urgent requests others may not use (`keep`).
The risk belongs to the budget: with one, calls under way count at what they are expected to cost,
not at their ceilings (`scheduler.foresight`).

>>> Budget("team", "$100/month @Europe/Athens from 15")
<Budget 'team' $100/month from 15 (calendar month from 15, Europe/Athens)>
>>> Budget("me", "$5/hour, $50/day, 2M tokens/day").spec
'$5/hour, $50/day, 2000000 tokens/day'
>>> Budget("me", "$5/hour").with_limit("$8").spec
'$8/hour'
>>> Budget("me", "$48/day @Europe/Athens paced 09:00-18:00").caps[0].pace
Pace(text='09:00-18:00')
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from fnmatch import fnmatchcase

from scheduler.errors import ConfigError
from scheduler.keep import STEPS, Keep
from scheduler.money import parse_usd, usd
from scheduler.naming import Names, is_met, names_of
from scheduler.pace import Pace, begins_ms, step_at
from scheduler.pace import check as check_pace
from scheduler.window import Window, WindowKind

__all__ = ["Budget", "Cap", "Spec", "Unit", "Window", "WindowKind", "parse_caps"]

Spec = str | int | float | Decimal | None

MAX_COUNT = 10**15
UNLIMITED = 1 << 62  # as an amount, where there is no limit
MAX_NAME = 100
RISKS = ("none", "low", "default", "high")  # `foresight.risk` has what they mean
_SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_COUNT = re.compile(r"([\d_,]*\.?\d+)\s*([kmb]?)\s*(tokens?|requests?)", re.IGNORECASE)
_NONE = re.compile(r"(?:none|unlimited)(?:\s+(usd|tokens?|requests?))?", re.IGNORECASE)
# A comma separates caps unless it groups digits, as in "$1,000/day".
_SEPARATOR = re.compile(r"(?<!\d),|,(?!\d{3}(?!\d))")
_ZONE = re.compile(r"@\s*(\S+)")
_KEEP = re.compile(r"\s+keep\s+(.+)$", re.IGNORECASE)
_PACE = re.compile(r"\s+paced(?:\s+(\S+))?$", re.IGNORECASE)
_RISK = re.compile(r"[\s,]\s*risk(?:\s+|\s*=\s*)(\S+)\s*$", re.IGNORECASE)
_ANCHOR = re.compile(r"(?<=\s)from\s+(\S+)", re.IGNORECASE)


class Unit(StrEnum):
    """What a cap counts."""

    USD = "usd"
    TOKENS = "tokens"
    REQUESTS = "requests"


@dataclass(frozen=True, slots=True)
class Cap:
    """One limit over one window.

    Attributes:
        limit: In nano-dollars, tokens or requests; None: no limit, only counted.
        pace: How much of it may be spent by when; None: all of it at once.
        keep: How much of it is for more urgent requests alone; None: nothing.
    """

    unit: Unit
    limit: int | None
    window: Window
    pace: Pace | None = None
    keep: Keep | None = None

    def __post_init__(self) -> None:
        if self.pace is not None:
            check_pace(self.window)

    def __str__(self) -> str:
        window = "" if self.window.kind is WindowKind.TOTAL else f"/{self.window}"
        pace = "" if self.pace is None else f" {self.pace}"
        keep = "" if self.keep is None else f" {self.keep}"
        return f"{self.amount_text}{window}{pace}{keep}"

    def keeps(self, priority: int, at_ms: int) -> int:
        """What is kept then from requests of a priority, for more urgent ones."""
        if self.keep is None or self.limit is None:
            return 0
        return self.keep.amount(self.limit, priority, self.release_step(at_ms))

    def fits_at_ms(self, amount: int, priority: int, at_ms: int) -> int | None:
        """From when on so much of its window may be used up by a priority; None: not in this window.

        As pace and what is kept have it. Only a calendar window has a course in which that grows.
        """
        keep, window, pace = self.keep, self.window, self.pace
        if window.kind is not WindowKind.CALENDAR or self.limit is None or amount > self.limit:
            return None
        if keep is None or not keep.share_from(priority):
            return at_ms if pace is None else pace.reaches_ms(amount, window, at_ms, self.limit)
        for step in range(self.release_step(at_ms), STEPS):
            since_ms = max(at_ms, self.released_ms(step, at_ms))
            wanted = amount + keep.amount(self.limit, priority, step)
            there_ms: int | None = since_ms if wanted <= self.limit else None
            if pace is not None:
                there_ms = pace.reaches_ms(wanted, window, at_ms, self.limit)
            if there_ms is None:
                continue
            there_ms = max(there_ms, since_ms)
            if step == STEPS - 1 or there_ms < self.released_ms(step + 1, at_ms):
                return there_ms
        return None

    def released_ms(self, step: int, at_ms: int) -> int:
        """When a step begins in which less is kept."""
        window = self.window
        if window.kind is not WindowKind.CALENDAR or step >= STEPS:
            return window.resets_at_ms(at_ms) or UNLIMITED
        return begins_ms(self.pace or Pace(), window, at_ms, step, STEPS)

    def release_step(self, at_ms: int) -> int:
        """In which step what is kept is being released; in a window without an end the first."""
        if self.window.kind is not WindowKind.CALENDAR:
            return 0
        return step_at(self.pace or Pace(), self.window, at_ms, STEPS)

    @property
    def amount_text(self) -> str:
        """The limit as the grammar writes it."""
        if self.limit is None:
            return "none" if self.unit is Unit.USD else f"none {self.unit}"
        if self.unit is Unit.USD:
            return f"${usd(self.limit).normalize():f}"
        return f"{self.limit} {self.unit}"

    def format_amount(self, amount: int) -> str:
        """An amount in this cap's unit, for people."""
        if self.unit is Unit.USD:
            sign, dollars = ("-", -amount) if amount < 0 else ("", amount)
            whole, _, rest = f"{usd(dollars):f}".partition(".")
            return f"{sign}${whole}.{rest.rstrip('0').ljust(2, '0')}"
        word = self.unit.value[:-1] if amount == 1 else self.unit.value
        return f"{amount:,} {word}"


def parse_caps(spec: Spec) -> tuple[Cap, ...]:
    """Read a specification; plain numbers are dollars in total, None is no limit.

    Raises:
        ConfigError: It does not follow the grammar; says which part and why.
    """
    if spec is None:
        spec = "none"
    if not isinstance(spec, str):
        return (Cap(Unit.USD, parse_usd(spec, "budget"), Window(WindowKind.TOTAL)),)
    if len(spec) > 1000:
        raise ConfigError("budget", f"a specification of {len(spec):,} characters is no budget")
    caps = tuple(_parse_cap(part, spec) for part in _SEPARATOR.split(spec))
    windows = [(cap.unit, cap.window) for cap in caps]
    for unit, window in windows:
        if windows.count((unit, window)) > 1:
            raise ConfigError("budget", f"{spec!r} limits {unit} per {window} twice")
    return caps


def split_risk(spec: Spec) -> tuple[Spec, str | None]:
    """A specification without its risk, and that; None: it says none."""
    match = _RISK.search(spec) if isinstance(spec, str) else None
    if match is None:
        return spec, None
    assert isinstance(spec, str)
    return spec[: match.start()], match[1].lower()


def _parse_cap(part: str, spec: str) -> Cap:
    text, found = part.strip(), []
    for pattern in (_ZONE, _ANCHOR):
        matches = pattern.findall(text)
        if len(matches) > 1:
            raise ConfigError("budget", f"{part.strip()!r} says {matches} where one is enough")
        found.append(matches[0] if matches else None)
        text = pattern.sub("", text).strip()
    zone, anchor = found
    pace = keep = None
    if kept := _KEEP.search(text):
        text, keep = text[: kept.start()], Keep.parse(kept[1])
    if paced := _PACE.search(text):
        text, pace = text[: paced.start()], Pace.parse(paced[1] or "")
    amount, slash, window = (side.strip() for side in text.partition("/"))
    if not amount or (slash and not window):
        what = "an amount" if not amount else "a window after the '/'"
        raise ConfigError("budget", f"{spec!r} lacks {what}, as in '$10/day'")
    unit, limit = _parse_amount(amount)
    return Cap(unit, limit, Window.parse(window or "total", zone, anchor), pace, keep)


def _kept(caps: tuple[Cap, ...], keep: Mapping[str, float] | None) -> tuple[Cap, ...]:
    if not keep:
        return caps
    read = Keep.of(keep)
    return tuple(cap if cap.keep is not None else replace(cap, keep=read) for cap in caps)


def _paced(caps: tuple[Cap, ...], pace: str | None) -> tuple[Cap, ...]:
    if pace is None:
        return caps
    if not any(cap.window.kind is WindowKind.CALENDAR for cap in caps):
        check_pace(caps[0].window)
    read = Pace.parse(pace)
    return tuple(
        replace(cap, pace=read)
        if cap.window.kind is WindowKind.CALENDAR and cap.pace is None
        else cap
        for cap in caps
    )


def _parse_amount(text: str) -> tuple[Unit, int | None]:
    if match := _NONE.fullmatch(text):
        return _unit(match[1] or "usd"), None
    match = _COUNT.fullmatch(text)
    if match is None:
        return Unit.USD, parse_usd(text, "budget")
    try:
        count = Decimal(match[1].replace(",", "").replace("_", "")) * _SCALES[match[2].lower()]
    except InvalidOperation:
        raise ConfigError("budget", f"{text!r} is not a number of {match[3]}") from None
    if count != int(count) or count > MAX_COUNT:
        raise ConfigError("budget", f"{text!r} is not a whole number up to {MAX_COUNT:,}")
    return _unit(match[3]), int(count)


def _unit(word: str) -> Unit:
    word = word.lower()
    return Unit(word if word.endswith("s") or word == "usd" else f"{word}s")


class Budget:
    """A named limit on spending.

    Args:
        name: What requests and people call it.
        limit: Its caps, as text or as an amount of dollars in total; None: no limit,
            spending is only counted.
        models: Patterns such as ``"gpt-4*"``: requests for these models draw on it, by whatever
            name they are asked for. ``"openai/gpt-4*"`` is about that provider's alone.
        tags: Tags a request must have to draw on it; values may be patterns.
        parent: Name of a budget that its requests draw on as well.
        pace: Of its caps with a calendar window, what may be spent by when: ``"uniform"``, hours of
            each day such as ``"09:00-18:00"`` in the window's zone, or 24 digits, the weight of
            each hour. None: as each cap says itself, else all at once.
        keep: Of each of its caps, shares that only requests of a priority, or more urgent ones, may
            use: ``{"interactive": 0.2}``. In a calendar window what is kept shrinks with the time
            that is left. None: as each cap says itself, else nothing.
        risk: ``"none"``: calls under way count at their ceilings, and no more is ever spent than
            the limit. ``"low"``, ``"default"``, ``"high"``: at what they are expected to cost, from
            what earlier ones did, so that the last of a budget is spent at full speed; how far it
            may be overspent is in docs/foresight.md. None: as the limit says, else ``"none"``.

    A budget with `models` or `tags` has rules: requests that match all of them draw
    on it without naming it.

    Raises:
        ConfigError: A wrong name or specification.
    """

    __slots__ = ("caps", "models", "name", "parent", "risk", "tags")

    def __init__(
        self,
        name: str,
        limit: Spec = None,
        *,
        models: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
        pace: str | None = None,
        risk: str | None = None,
        keep: Mapping[str, float] | None = None,
    ) -> None:
        if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
            raise ConfigError("budget", f"{name!r} is not a name of 1 to {MAX_NAME} characters")
        if parent == name:
            raise ConfigError("budget", f"{name!r} cannot be its own parent")
        if isinstance(models, str):
            raise ConfigError("models", f"{models!r} is one text; give a list of patterns")
        limit, said = split_risk(limit)
        if None not in (risk, said) and risk != said:
            raise ConfigError("risk", f"of {name!r} is {risk!r} and, in the limit, {said!r}")
        self.risk = said or "none" if risk is None else risk
        if self.risk not in RISKS:
            raise ConfigError("risk", f"{self.risk!r} is not one of {', '.join(map(repr, RISKS))}")
        caps = parse_caps(limit)
        self.name, self.caps, self.parent = name, _kept(_paced(caps, pace), keep), parent
        self.models, self.tags = tuple(models), dict(tags or {})

    @property
    def spec(self) -> str:
        """The caps as text that reads back as the same caps."""
        return ", ".join(map(str, self.caps))

    @property
    def text(self) -> str:
        """The caps and the risk as one text, as `limit` takes it."""
        return self.spec if self.risk == "none" else f"{self.spec} risk {self.risk}"

    @property
    def has_rules(self) -> bool:
        """Whether requests can match it without naming it."""
        return bool(self.models or self.tags)

    def covers(self, model: str | Names, tags: Mapping[str, str]) -> bool:
        """Whether its rules match a request; without rules nothing does.

        Args:
            model: All names of its model, or one of which the others follow.
            tags: Its tags.
        """
        if not self.has_rules:
            return False
        if self.models:
            names = names_of(model) if isinstance(model, str) else model
            if not any(is_met(pattern, names) for pattern in self.models):
                return False
        return all(
            name in tags and fnmatchcase(tags[name], value) for name, value in self.tags.items()
        )

    def with_limit(self, limit: Spec) -> Budget:
        """The same budget with another limit.

        A bare amount keeps the window of the cap in its unit; None keeps all windows
        and switches the limits off; a full form such as ``"$20/day"`` or
        ``"$20/total"`` replaces all caps. The risk stays, unless another one is said.

        Raises:
            ConfigError: A bare amount that could mean several caps, or none.
        """
        limit, risk = split_risk(limit)
        changed = Budget(
            self.name, limit, models=self.models, tags=self.tags, parent=self.parent,
            risk=risk or self.risk,
        )  # fmt: skip
        is_bare = not isinstance(limit, str) or not re.search(r"[/@,]|\sfrom\s", limit)
        if is_bare and len(changed.caps) == 1:
            changed.caps = self._with_amount(changed.caps[0])
        return changed

    def _with_amount(self, amount: Cap) -> tuple[Cap, ...]:
        if amount.limit is None:
            return tuple(replace(cap, limit=None) for cap in self.caps)
        same = [cap for cap in self.caps if cap.unit is amount.unit]
        if len(same) == 1:
            return tuple(
                replace(cap, limit=amount.limit) if cap is same[0] else cap for cap in self.caps
            )
        problem = "which of them" if same else f"over which window (it has {self.spec})"
        raise ConfigError(
            "limit",
            f"budget {self.name!r} has {len(same)} caps in {amount.unit}: say {problem} by giving "
            f"the full form, such as '{amount.amount_text}/day'",
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and self._fields == other._fields

    def __hash__(self) -> int:
        return hash((self.name, self.caps))

    def __repr__(self) -> str:
        caps = ", ".join(
            f"{cap.amount_text}/{_period(cap.window)} ({cap.window.describe()})"
            if cap.window.kind is not WindowKind.TOTAL
            else f"{cap.amount_text} (total)"
            for cap in self.caps
        )
        risk = "" if self.risk == "none" else f" risk {self.risk}"
        return f"<Budget {self.name!r} {caps}{risk}>"

    @property
    def _fields(self) -> tuple[object, ...]:
        return (self.name, self.caps, self.models, self.tags, self.parent, self.risk)


def _period(window: Window) -> str:
    """A window's text without its zone, which its description tells."""
    return str(window).replace(f" @{window.zone}", "")
