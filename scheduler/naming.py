"""Names of one model: how people write it in requests, rules and routes; pure.

The same model is asked for as ``gpt-4o``, ``openai/gpt-4o``, ``openrouter:openai/gpt-4o``,
``models/…``, in any case, as a dated snapshot or with a gateway's suffix. A rule meets it under
each of them. What prices and configurations add, such as deployments, is in `aliases`.

>>> names = names_of("openrouter:openai/GPT-4o-2024-08-06:nitro")
>>> [is_met(pattern, names) for pattern in ("gpt-4o", "openai/gpt-4*", "OpenRouter/*")]
[True, True, True]
>>> [is_met(pattern, names) for pattern in ("gpt-4", "azure/gpt-4o", "gpt-4o-mini")]
[False, False, False]
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

# Who may stand before a colon or a slash, with the names that mean the same.
_PLACES = (
    {"openai"}, {"anthropic"}, {"azure", "azure_ai", "azure_openai"},
    {"gemini", "google", "google_ai_studio", "google-gla", "google_genai"},
    {"openrouter"}, {"groq"}, {"mistral", "mistralai"}, {"together", "together_ai", "togethercomputer"},
    {"deepseek", "deepseek-ai"}, {"xai", "x-ai"},
    {"bedrock", "aws", "bedrock_converse", "amazon-bedrock"},
    {"vertex_ai", "vertex", "vertex_ai_beta", "google-vertex"},
    {"fireworks", "fireworks_ai"}, {"cohere"}, {"perplexity"}, {"vllm"},
    {"ollama", "ollama_chat"}, {"meta", "meta-llama"}, {"moonshot", "moonshotai"}, {"zai", "z-ai"},
)  # fmt: skip
_SAME = {name: frozenset(place) for place in _PLACES for name in place}

# What a gateway or a server takes behind a colon, without its being another model.
_VARIANT = re.compile(
    r"(?::(?:free|nitro|floor|beta|extended|thinking|online|exacto|latest|cloud)|\[\d+[km]\])+$",
    re.IGNORECASE,
)
_DATED = re.compile(
    r"(?:-latest|[-@]20\d\d-[01]\d-[0-3]\d|[-@]20\d\d[01]\d[0-3]\d|[-@]00\d|"
    r"-[0-2]\d[0-3]\d|-preview-[01]\d-(?:20)?\d\d)(?:-v\d+)?(?::\d+)?$"
)
# Bedrock: a region, and who made it.
_MADE_BY = re.compile(
    r"(?:(?:[a-z]{2,6}|us-gov)\.)?"
    r"(ai21|amazon|anthropic|cohere|deepseek|meta|mistral|openai|qwen|writer)\.(.+)"
)
# Claude's versions have a dash for a dot at Anthropic, and a nought that others leave out.
_DASHED = re.compile(r"(?<![\d.])(\d{1,2})-(\d{1,2})(?![\d.])")
_NOUGHT = re.compile(r"(claude-[a-z]+-\d+)[-.]0$")
_SNAPSHOT = re.compile(r"(?:[-@:](?:v?\d+|latest|preview|exp))+")


class Asked(NamedTuple):
    """A model as a request will ask for it.

    Attributes:
        model: As its provider is asked for it.
        provider: Who is asked, by the scheduler's name for it; empty: anybody.
        called: As the request itself called it, before a route led elsewhere.
        also: Other models that may answer, and be billed, in its place.
    """

    model: str
    provider: str = ""
    called: str = ""
    also: tuple[str, ...] = ()


class Names(NamedTuple):
    """All names of a model, in small letters and with slashes for colons.

    Attributes:
        plain: As it is written, and without what stands before it and behind it.
        at: With whoever it is asked at, or was made by, before it.
    """

    plain: frozenset[str]
    at: frozenset[str]

    def __or__(self, other: Names) -> Names:
        return Names(self.plain | other.plain, self.at | other.at)

    @property
    def shown(self) -> tuple[str, ...]:
        """For people: the shortest first."""
        return tuple(sorted(self.plain | self.at, key=lambda name: (len(name), name)))


def names_of(*written: str, places: Iterable[str] = ()) -> Names:
    """The names of a model.

    Args:
        written: Ways in which it is written.
        places: Names of whoever is asked.
    """
    plain, bare = set[str](), set[str]()
    before = {each for place in places for each in same_place(_normal(place))}
    for raw in filter(None, written):
        _spell(raw, plain, bare, before)
    plain |= bare
    at = {
        f"{place}/{name}" for place in before for name in plain
        if not name.startswith(f"{place}/")
    }  # fmt: skip
    return Names(frozenset(plain), frozenset(at))


def _spell(raw: str, plain: set[str], bare: set[str], before: set[str]) -> None:
    """Add the names that one way to write a model has."""
    text = raw.casefold().strip().removeprefix("models/")
    plain.add(_normal(text))
    place, colon, rest = text.partition(":")
    if colon and rest and place in _SAME:
        before.update(same_place(place))
        text = rest
    for form in {text, _VARIANT.sub("", text)}:
        parts = form.split("/")
        plain.update(_normal("/".join(parts[at:])) for at in range(len(parts)))
        for start in range(len(parts) - 1):
            for place in ("/".join(parts[start:-1]), parts[start]):
                before.update(same_place(_normal(place)))
        last = [parts[-1]]
        made = _MADE_BY.fullmatch(last[0])
        if made is not None:
            before.update(same_place(made[1]))
            last.append(made[2])
        for name in last:
            for each in (name, _DATED.sub("", name) or name):
                bare.update(
                    (_normal(each), _dotted(_normal(each)), _NOUGHT.sub(r"\1", _normal(each)))
                )


def same_place(name: str) -> frozenset[str]:
    """A provider's name, and those that mean the same."""
    return _SAME.get(name) or frozenset({name})


def is_snapshot(name: str, base: str) -> bool:
    """Whether a name is a base's own with no more than a date, a number or ``latest`` behind it.

    >>> is_snapshot("gpt-4-0613", "gpt-4"), is_snapshot("gpt-5-codex", "gpt-5")
    (True, False)
    """
    return name == base or (
        name.startswith(base) and _SNAPSHOT.fullmatch(name[len(base) :]) is not None
    )


def is_met(pattern: str, names: Names) -> bool:
    """Whether a rule's pattern means the model: with a provider before it, only that one's."""
    return any(_meets(each, names) for each in _forms(pattern))


def written_as(pattern: str) -> frozenset[str]:
    """The names by which alone a rule's pattern is met; none: it has wild cards.

    >>> sorted(written_as("mistralai/large")), written_as("gpt-*")
    (['mistral/large', 'mistralai/large'], frozenset())
    """
    if set("*?[") & set(pattern):
        return frozenset()
    return frozenset(each for form in _forms(pattern) for each in _placed(form))


def _forms(pattern: str) -> set[str]:
    pattern = _normal(pattern.casefold().strip().removeprefix("models/"))
    return {pattern, _dotted(pattern), _NOUGHT.sub(r"\1", pattern)}


def _dotted(name: str) -> str:
    """With dots in its version.

    >>> _dotted("claude-3-5-haiku"), _dotted("gpt-4-1106-preview")
    ('claude-3.5-haiku', 'gpt-4-1106-preview')
    """
    return _DASHED.sub(r"\1.\2", name)


def _meets(pattern: str, names: Names) -> bool:
    if "/" not in pattern:
        return _any(names.plain, pattern)
    return any(_any(names.plain, each) or _any(names.at, each) for each in _placed(pattern))


def _placed(pattern: str) -> set[str]:
    """A pattern with each name of the provider before it, if there is one."""
    place, slash, rest = pattern.partition("/")
    return {pattern, *(f"{same}/{rest}" for same in same_place(place) if slash)}


def _any(names: frozenset[str], pattern: str) -> bool:
    return pattern in names or any(fnmatchcase(name, pattern) for name in names)


def _normal(name: str) -> str:
    return name.casefold().replace(":", "/")
