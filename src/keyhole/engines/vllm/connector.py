"""Tells the worker whose requests a step serves, and the scheduler what they have read.

vLLM makes one for the scheduler and one for each worker. No keys or values are transferred.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from keyhole.attention import Logits
from keyhole.engines.vllm.accounts import Accounts, StepUsage
from keyhole.engines.vllm.announcer import Announcer, Step
from keyhole.engines.vllm.counters import UsageMetrics, UsageStats, wanted
from keyhole.engines.vllm.metadata import Batch
from keyhole.engines.vllm.server import Server


@dataclass
class StepMetadata(KVConnectorMetadata):
    """What the scheduler sends with a step."""

    step: Step


@dataclass
class UsageMetadata(KVConnectorWorkerMetadata):
    """What a worker answers."""

    usage: StepUsage

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        assert isinstance(other, UsageMetadata)
        return UsageMetadata(self.usage.joined(other.usage))


class _Worker(KVConnectorBase_V1, SupportsHMA):
    """The part of a connector that is in a worker."""

    _server: Server

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        self._server.use_pages(kv_caches)

    def attend(
        self, name: str, query: Tensor, key: Tensor, value: Tensor, out: Tensor, batch: Batch, logits: Logits
    ) -> None:
        """Attention of one layer, by name, for a step's flat tensors."""
        self._server.attend(name, query, key, value, out, batch, logits)

    def wait_for_save(self) -> None:
        self._server.finish()

    def build_connector_worker_meta(self) -> UsageMetadata | None:
        totals = self._server.take_usage()
        return UsageMetadata(StepUsage(totals)) if totals else None

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing is loaded."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded."""

    def save_kv_layer(self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved."""


class KeyholeConnector(_Worker):
    """A KV connector that moves nothing."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        groups = kv_cache_config.kv_cache_groups
        if role is KVConnectorRole.SCHEDULER:
            self._announcer = Announcer([group.kv_cache_spec.block_size for group in groups])
            self._accounts: Accounts | None = Accounts()
        else:
            self._server = Server(vllm_config, groups)
            self._accounts = None

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        assert isinstance(connector_metadata, StepMetadata)
        self._server.expect(connector_metadata.step)

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:  # noqa: ARG002
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Nothing is loaded into the blocks."""

    def build_connector_meta(self, scheduler_output: Any) -> StepMetadata:
        assert self._accounts is not None
        self._accounts.close(scheduler_output.finished_req_ids)
        return StepMetadata(self._announcer.step(scheduler_output))

    def update_connector_output(self, connector_output: Any) -> None:
        answered = connector_output.kv_connector_worker_meta
        if answered is not None and self._accounts is not None:
            self._accounts.note(answered.usage)

    def request_finished_all_groups(
        self,
        request: Any,
        block_ids: tuple[list[int], ...],  # noqa: ARG002
    ) -> tuple[bool, dict[str, Any] | None]:
        """Its usage goes into the answer: that of all steps but the last one, whose has not come yet."""
        assert self._accounts is not None
        return False, {"keyhole": self._accounts.of(request.request_id).as_dict()}

    def get_kv_connector_stats(self) -> UsageStats | None:
        if self._accounts is None or not wanted():
            return None
        new = self._accounts.take_new()
        return UsageStats(new) if new else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> UsageStats | None:
        return UsageStats(data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> UsageMetrics:
        return UsageMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)
