"""The entry point `vllm.stat_logger_plugins`, loaded in a server that is about to start its engine."""

from __future__ import annotations

import os


def __getattr__(name: str) -> type:
    if name != "UsageCounters":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from keyhole.engines.vllm.counters import WANTED, UsageCounters

    os.environ[WANTED] = "1"
    return UsageCounters
