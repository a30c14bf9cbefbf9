"""Prometheus counters of what decoding read, in the process of vLLM's server."""

# pyright: reportMissingImports=false
from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from prometheus_client import Counter
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.utils import create_metric_per_engine

from keyhole.engines.vllm.accounts import COUNTED
from keyhole.engines.vllm.prepare import prepared

# Set in a server, for the processes that it starts: others would not know what to do with the numbers.
WANTED = "KEYHOLE_VLLM_COUNTERS"
_COUNTERS = {
    "steps": ("keyhole_decode_steps", "Decode steps of requests."),
    "context": ("keyhole_tokens_context", "Tokens that decode steps had before them, a mean over layers."),
    "read": ("keyhole_tokens_read", "Tokens that decode steps read, a mean over layers and KV heads."),
    "bytes": ("keyhole_bytes_read", "Bytes of keys, values and index that decode steps read, in all layers."),
}


def wanted() -> bool:
    """Whether this engine's server counts."""
    return bool(os.environ.get(WANTED))


class UsageStats(KVConnectorStats):
    """What was read between two steps of the scheduler."""

    def __init__(self, data: Mapping[str, float]) -> None:
        super().__init__(dict(data))

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> UsageStats:
        names = self.data.keys() | other.data.keys()
        return UsageStats({name: self.data.get(name, 0) + other.data.get(name, 0) for name in names})

    def reduce(self) -> dict[str, int | float]:
        share = self.data["read"] / self.data["context"] if self.data.get("context") else 1.0
        return {"Decode steps": int(self.data.get("steps", 0)), "Share of tokens read": round(share, 4)}

    def is_empty(self) -> bool:
        return not self.data.get("steps")


class UsageMetrics(KVConnectorPromMetrics):
    """The counters of each engine of a server."""

    def __init__(
        self, vllm_config: Any, types: Any, labels: list[str], values: dict[int, list[object]]
    ) -> None:
        super().__init__(vllm_config, types, labels, values)
        self._counters = {
            name: create_metric_per_engine(
                types[Counter](name=_COUNTERS[name][0], documentation=_COUNTERS[name][1], labelnames=labels),
                values,
            )
            for name in COUNTED
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, counters in self._counters.items():
            counters[engine_idx].inc(transfer_stats_data.get(name, 0))


class UsageCounters(StatLoggerBase):
    """Has vLLM's own loggers count what Keyhole reads.

    vLLM makes it in the server's process, before those: they look for the connector in the configuration.
    """

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:  # noqa: ARG002
        prepared(vllm_config)

    def record(self, *args: Any, **kwargs: Any) -> None:
        """Its own loggers record."""

    def log_engine_initialized(self) -> None:
        """There is nothing to say."""
