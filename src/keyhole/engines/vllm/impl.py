"""Attention of one layer, for a worker of vLLM.

Legend: T tokens of a step, H query heads, D head size.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

from keyhole.attention import Logits
from keyhole.engines.vllm.support import check_layer
from keyhole.storage import Pages


class ServingImpl:
    """Beside a backend's implementation: layers that attend to the whole sequence are served by Keyhole.

    Others (sliding windows, encoders) get the backend's own.

    Attributes:
        own: the backend's implementation.
    """

    own: type[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        layer = super().__new__(cls)
        cls.own.__init__(layer, *args, **kwargs)
        sliding_window = kwargs.get("sliding_window", args[5] if len(args) > 5 else None)
        return layer if check_layer(layer, sliding_window) else cls.own(*args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Done by `__new__`, which has to know what the layer is."""

    @staticmethod
    def pages(kv_cache: Tensor, head_size: int) -> Pages:
        """Keys and values in the pages of one layer."""
        raise NotImplementedError

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,  # noqa: ARG002  # the pages of a layer are given once
        attn_metadata: Any,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attention of `query [T, H, D]` into `output [T, H, D]`; without metadata nothing is served yet."""
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("fused output quantization is not supported by Keyhole's attention")
        if attn_metadata is None or not has_kv_transfer_group():
            return output.zero_()
        connector: Any = get_kv_transfer_group()
        connector.attend(layer.layer_name, query, key, value, output, attn_metadata.batch, self.logits)
        return output

    @property
    def logits(self) -> Logits:
        """How the layer makes logits of products."""
        made: Any = self
        return Logits(made.scale, made.logits_soft_cap or None, made.sinks)
