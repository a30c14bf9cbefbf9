"""The pages of layers that Keyhole serves, as vLLM's scheduler knows them."""

# pyright: reportMissingImports=false

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

from vllm.v1.kv_cache_interface import FullAttentionSpec

from keyhole.engines.vllm.hits import Hits, hits_of
from keyhole.engines.vllm.prepare import prepared

if TYPE_CHECKING:
    from keyhole.engines.vllm.config import Settings

FIRST = 1  # blocks of a request's beginning that stay where others are given back
LAST = 2  # and whole blocks before its newest token
_NONE = Hits(None, False)
_OURS = ("mirrored", "hits", "in_flight")


@dataclass(frozen=True, kw_only=True)
class KeyholeSpec(FullAttentionSpec):
    """Pages whose requests' keys and values are read by a method.

    Attributes:
        mirrored: Keyhole holds keys and values itself, so blocks are given back while a request runs.
        hits: how far prefix-cache hits reach.
        in_flight: the most tokens that are scheduled and not yet processed.
    """

    mirrored: bool = False
    hits: Hits = _NONE
    in_flight: int = 0

    @property
    def most_blocks(self) -> int | None:
        """The most blocks a request takes at a time; None where it takes all of its tokens'."""
        if not self.mirrored:
            return None
        # The tokens in flight need not begin with a block.
        return FIRST + LAST + -(-self.in_flight // self.block_size) + 1

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        prepared(vllm_config)  # the first of ours that the scheduler's process calls
        whole = super().max_memory_usage_bytes(vllm_config)
        return whole if self.most_blocks is None else min(whole, self.most_blocks * self.page_size_bytes)

    @classmethod
    def merge(cls, specs: list[Self]) -> Self:
        own = [{name: getattr(spec, name) for name in _OURS} for spec in specs]
        if any(other != own[0] for other in own):
            raise ValueError(f"layers of one group are to be served alike, not as {own}")
        return replace(super().merge(specs), **own[0])


def serving_spec(spec: Any, settings: Settings, vllm_config: Any) -> Any:
    """The spec of a layer that is served; of another kind it stays as it is."""
    if type(spec) is not FullAttentionSpec:
        return spec
    layers = vllm_config.model_config.hf_text_config.num_hidden_layers
    return KeyholeSpec(
        **{field.name: getattr(spec, field.name) for field in fields(spec)},
        mirrored=settings.mirrored,
        hits=hits_of(settings.recipe, layers),
        in_flight=vllm_config.max_in_flight_tokens,
    )
