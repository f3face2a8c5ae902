"""Temporary."""

from scheduler.request import Usage


def extract_usage(body):
    u = body.get("usage") or {}
    return Usage(
        u.get("prompt_tokens", u.get("input_tokens", 0)),
        u.get("completion_tokens", u.get("output_tokens", 0)),
    )


def reported_cost_nusd(body):
    return None
