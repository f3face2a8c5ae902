"""What an endpoint takes: the parameters of its request body, from the public API references.

Rows of a data set are not bodies: of a row only what stands here is sent. What somebody puts
under ``"body"`` is theirs, and is sent whole.

As of November 2026. To each endpoint's own come the names that widespread compatible servers
add, as far as no column of a data set is likely to be called so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scheduler.request import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, MODERATIONS, RESPONSES


def words(text: str) -> frozenset[str]:
    """The words of a text, for tables that can be read."""
    return frozenset(text.split())


_SAMPLING = words(
    "frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream "
    "stream_options temperature top_logprobs top_p user"
)
# vLLM, SGLang, llama.cpp, TGI, Groq, Mistral, DeepSeek, OpenRouter, Perplexity, xAI
_COMPATIBLE = words(
    "add_generation_prompt bad_words chat_template chat_template_kwargs enable_thinking "
    "extra_body guided_choice guided_grammar guided_json guided_regex ignore_eos "
    "include_reasoning include_stop_str_in_output length_penalty min_p min_tokens mirostat "
    "num_ctx prompt_mode random_seed reasoning reasoning_format repetition_penalty safe_prompt "
    "search_parameters skip_special_tokens stop_token_ids structured_outputs thinking "
    "thinking_budget top_a top_k truncate_prompt_tokens typical_p use_beam_search"
)

PARAMETERS: Mapping[str, frozenset[str]] = {
    CHAT: _SAMPLING
    | _COMPATIBLE
    | words(
        "audio function_call functions max_completion_tokens messages metadata modalities model "
        "parallel_tool_calls prediction prompt_cache_key prompt_cache_retention reasoning_effort "
        "response_format safety_identifier service_tier store tool_choice tools verbosity "
        "web_search_options"
    ),
    RESPONSES: _COMPATIBLE
    | words(
        "background context_management conversation include input instructions max_output_tokens "
        "max_tool_calls metadata model parallel_tool_calls previous_response_id prompt "
        "prompt_cache_key prompt_cache_retention reasoning safety_identifier service_tier store "
        "stream stream_options temperature text tool_choice tools top_logprobs top_p truncation "
        "user"
    ),
    COMPLETIONS: _SAMPLING | _COMPATIBLE | words("best_of echo model prompt suffix"),
    EMBEDDINGS: words(
        "dimensions encoding_format input input_type model output_dimension output_dtype task "
        "truncate truncate_prompt_tokens truncation user"
    ),
    MODERATIONS: frozenset(("input", "model")),
    MESSAGES: words(
        "anthropic_beta anthropic_version cache_control container context_management inference_geo "
        "max_tokens mcp_servers messages metadata model output_config output_format service_tier "
        "speed stop_sequences stream system temperature thinking tool_choice tools top_k "
        "top_p"
    ),
}
# Names that columns have too: a parameter only if it has the parameter's form.
_OBJECTS = words(
    "audio context_management metadata prediction prompt reasoning stream_options text thinking"
)
_LISTS = words("anthropic_beta functions include mcp_servers modalities tools")


def own_parameters(url: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Of a row, what is sent to the endpoint."""
    return {name: value for name, value in fields.items() if _is_parameter(url, name, value)}


def _is_parameter(url: str, name: str, value: object) -> bool:
    if name not in PARAMETERS[url]:
        return False
    if name in _OBJECTS and not (url == COMPLETIONS and name == "prompt"):
        return value is None or isinstance(value, dict)
    return name not in _LISTS or value is None or isinstance(value, list)
