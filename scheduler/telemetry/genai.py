"""Names of OpenTelemetry's conventions for generative AI, as they were in November 2026.

They are in development and keep changing, and the constants of `opentelemetry-semantic-conventions` are
deprecated since they moved to a repository of their own (open-telemetry/semantic-conventions-genai). So
these are ours, in this one place: with `gen_ai.provider.name` (once ``gen_ai.system``) and
`gen_ai.usage.cache_write.input_tokens` (once ``cache_creation``). There is none for cost, and none for
waiting: those are ``scheduler.…``.
"""

from __future__ import annotations

VERSION = "2026-11"

OPERATION_NAME = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_P = "gen_ai.request.top_p"
REQUEST_STREAM = "gen_ai.request.stream"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"  # with what was cached
USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
USAGE_CACHE_READ = "gen_ai.usage.cache_read.input_tokens"
USAGE_CACHE_WRITE = "gen_ai.usage.cache_write.input_tokens"
USAGE_REASONING = "gen_ai.usage.reasoning.output_tokens"
TOKEN_TYPE = "gen_ai.token.type"
ERROR_TYPE = "error.type"
SERVER_ADDRESS, SERVER_PORT = "server.address", "server.port"

OPERATION_DURATION = "gen_ai.client.operation.duration"
DURATION_S = (
    0.01,
    0.02,
    0.04,
    0.08,
    0.16,
    0.32,
    0.64,
    1.28,
    2.56,
    5.12,
    10.24,
    20.48,
    40.96,
    81.92,
)
TIME_TO_FIRST_CHUNK = "gen_ai.client.operation.time_to_first_chunk"
FIRST_CHUNK_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
                 10.0)  # fmt: skip
TOKEN_USAGE = "gen_ai.client.token.usage"
TOKENS = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304,
          16_777_216, 67_108_864)  # fmt: skip

# What a request waits for and costs; ours.
REQUEST = "scheduler.request"
BUDGET = "scheduler.budget"
PRIORITY = "scheduler.priority"
JOB = "scheduler.job"
OUTCOME = "scheduler.outcome"
ATTEMPT = "scheduler.attempt"
ATTEMPTS = "scheduler.attempts"
LEDGER = "scheduler.ledger.outcome"
PARK_REASON = "scheduler.park.reason"
PARK_BUDGET = "scheduler.park.budget"
PARKED_SECONDS = "scheduler.parked_seconds"
QUEUED_SECONDS = "scheduler.queued_seconds"
COST_ESTIMATE = "scheduler.cost.estimate_usd"
COST_ACTUAL = "scheduler.cost.actual_usd"

PROVIDERS = {
    "gemini": "gcp.gemini", "google": "gcp.gemini", "azure": "azure.ai.openai",
    "mistral": "mistral_ai", "xai": "x_ai",
}  # fmt: skip
"""Where the conventions have another name than ours."""

OPERATIONS = {
    "/v1/completions": "text_completion", "/v1/embeddings": "embeddings",
    "/v1beta/embedContent": "embeddings", "/v1/moderations": "moderation",
}  # fmt: skip
"""By endpoint; all others chat."""
