"""Which line adopts an SDK or a framework that is installed? A table, and what the packages say.

Nothing of theirs is imported: versions and the HTTP clients that they need are read from their
metadata. `s` is an open scheduler. The lines are those of docs/adoption.md, which says more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from scheduler.guards.plain import one_line

AS_OF = "2026-11-28"

INSTRUMENT = "undo = scheduler.instrument(s)"
BY_CALL = "answer = await s.call(litellm.acompletion, model=model, messages=messages)"
BY_QUOTE = 'ask = s.budgeted(quote="$0.02", cost=cost_of)(client.converse)'
LANGCHAIN = (
    "llm = ChatOpenAI(model=model, max_retries=0, http_async_client=s.http_client(), "
    "http_client=s.http_client(sync=True))"
)
LLAMA = (
    'llm = OpenAI(model, max_retries=0, async_http_client=s.http_client("httpx"), '
    'http_client=s.http_client("httpx", sync=True))'
)


@dataclass(frozen=True, slots=True)
class Row:
    """One SDK or framework.

    Attributes:
        name: Its distribution.
        line: What adopts it.
        through: The distribution by which it sends, where that is not one of its own needs.
    """

    name: str
    line: str
    through: str = ""


TABLE = (
    Row("openai", "client = s.wrap(AsyncOpenAI())"),
    Row("anthropic", "client = s.wrap(AsyncAnthropic())"),
    Row("groq", "client = s.wrap(AsyncGroq())"),
    Row("mistralai", "client = s.wrap(Mistral(api_key=api_key))"),
    Row("google-genai", "client = s.wrap(genai.Client())"),
    Row("litellm", BY_CALL),
    Row("langchain-openai", LANGCHAIN, "openai"),
    Row("langchain-anthropic", INSTRUMENT, "anthropic"),
    Row("langchain-google-genai", "llm.client = s.wrap(llm.client)", "google-genai"),
    Row("langgraph", LANGCHAIN, "langchain-openai"),
    Row("llama-index", LLAMA, "openai"),
    Row("llama-index-llms-openai", LLAMA, "openai"),
    Row("instructor", "client = instructor.from_openai(s.wrap(AsyncOpenAI()))", "openai"),
    Row(
        "pydantic-ai-slim",
        "model = OpenAIChatModel(model, "
        "provider=OpenAIProvider(openai_client=s.wrap(AsyncOpenAI())))",
    ),
    Row("openai-agents", "set_default_openai_client(s.wrap(AsyncOpenAI()))", "openai"),
    Row("google-adk", "model = Gemini(model=model, client=s.wrap(genai.Client()))", "google-genai"),
    Row(
        "dspy",
        'lm = dspy.LM("openai/" + model, engine="litellm", num_retries=0); ' + INSTRUMENT,
        "litellm",
    ),
    Row("crewai", INSTRUMENT, "openai"),
    Row("smolagents", "model = OpenAIModel(model, client=s.wrap(OpenAI()))", "openai"),
    Row(
        "haystack-ai",
        "generator.client, generator.async_client = s.wrap(OpenAI()), s.wrap(AsyncOpenAI())",
        "openai",
    ),
    Row(
        "autogen-ext",
        "client = OpenAIChatCompletionClient(model=model, max_retries=0, "
        "http_client=s.http_client())",
        "openai",
    ),
    Row(
        "ag2", "config = OpenAIConfig(model, max_retries=0, http_client=s.http_client())", "openai"
    ),
    Row("inspect_ai", INSTRUMENT, "openai"),
    Row(
        "deepeval",
        'llm = OpenAIModel(model, async_http_client=s.http_client("httpx"), '
        'http_client=s.http_client("httpx", sync=True))',
        "openai",
    ),
    Row("ragas", "llm = llm_factory(model, client=s.wrap(AsyncOpenAI()))", "openai"),
    Row(
        "huggingface_hub",
        "huggingface_hub.set_async_client_factory(s.http_client); "
        "huggingface_hub.set_client_factory(lambda: s.http_client(sync=True))",
    ),
    Row("boto3", BY_QUOTE),
    Row("requests", INSTRUMENT),
    Row("aiohttp", INSTRUMENT),
)
# By what a package sends, in the order in which it is looked for among what it needs.
FAMILIES = ("httpx2", "httpx", "aiohttp", "botocore", "requests")
UNKNOWN = "a client that its metadata does not name"


@dataclass(frozen=True, slots=True)
class Adoption:
    """What is installed, how it sends, and the line that adopts it."""

    name: str
    version: str
    http: str
    line: str


def installed() -> Iterator[Adoption]:
    """What of the table is installed, in its order."""
    for row in TABLE:
        version = _version(row.name)
        if version is not None:
            yield Adoption(row.name, version, family(row.name), row.line)


def family(name: str) -> str:
    """The HTTP client by which a distribution sends, as its metadata says."""
    through = {row.name: row.through for row in TABLE}
    while _version(through.get(name, "")) is not None:
        name = through[name]
    needs = _needs(name) | {name}
    return next((each for each in FAMILIES if each in needs), UNKNOWN)


def _needs(name: str) -> set[str]:
    """Names of the distributions that one needs, without those of its extras."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return set()
    needed = (line for line in lines if "extra ==" not in line.partition(";")[2])
    return {_bare(line) for line in needed}


def _bare(requirement: str) -> str:
    """The name in front of extras, versions and markers."""
    for index, char in enumerate(requirement):
        if not (char.isalnum() or char in "-_."):
            return requirement[:index].lower()
    return requirement.lower()


def _version(name: str) -> str | None:
    """Its version; None: it is not installed, or what is left of it says none."""
    if not name:
        return None
    try:
        return one_line(metadata.version(name) or "") or None
    except (metadata.PackageNotFoundError, KeyError):
        return None
