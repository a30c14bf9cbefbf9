"""What answers took, as OpenAI's `usage` and as `x_keyhole`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from keyhole.serving.requests import Finished, ServedUsage


def completion_usage(prompts: Sequence[Sequence[ServedUsage]]) -> dict[str, Any]:
    """`usage` of chat and completions.

    Args:
        prompts: by prompt, what its answers took; a prompt counts once, whatever the number of its answers.
    """
    prompt, cached, written, answered = _counted(prompts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answered,
        "total_tokens": prompt + answered,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
    }


def response_usage(usage: ServedUsage) -> dict[str, Any]:
    """`usage` of the Responses API."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def counted(prompts: Sequence[Sequence[ServedUsage]]) -> dict[str, int]:
    """The same numbers for the log."""
    names = ("prompt", "cached", "written", "completion")
    return dict(zip(names, _counted(prompts), strict=True))


def read_of(finished: Sequence[Finished]) -> dict[str, Any]:
    """`x_keyhole`: what the steps of all answers read, added up."""
    usages = [each.usage for each in finished]
    read, context = sum(each.tokens_read for each in usages), sum(each.tokens_in_context for each in usages)
    masses = [each.missed_mass for each in usages if each.missed_mass is not None]
    tiers = {tier: 0 for each in usages for tier in each.bytes_held}
    found: dict[str, Any] = {
        "method": usages[0].method,
        "tokens_read": read,
        "tokens_in_context": context,
        "share": read / context if context else 1.0,
        "bytes_read": sum(each.bytes_read for each in usages),
        "bytes_held": {tier: sum(each.bytes_held.get(tier, 0) for each in usages) for tier in tiers},
        "missed_mass": sum(masses) / len(masses) if len(masses) == len(usages) else None,
    }
    records = [None if each.record is None else base64.b64encode(each.record).decode() for each in finished]
    if any(records):
        found["record"] = records
    missing = [each.unrecorded for each in finished if each.unrecorded is not None]
    if missing:
        found["record_error"] = missing[0]
    return found


def _counted(prompts: Sequence[Sequence[ServedUsage]]) -> tuple[int, int, int, int]:
    """Tokens of the prompts, those of them cached, those written, and tokens of the answers."""
    firsts = [answers[0] for answers in prompts]
    return (
        sum(each.prompt_tokens for each in firsts),
        sum(each.cached_tokens for each in firsts),
        sum(max(each.cache_write_tokens for each in answers) for answers in prompts),
        sum(each.completion_tokens for answers in prompts for each in answers),
    )
