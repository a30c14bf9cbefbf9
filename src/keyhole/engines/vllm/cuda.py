"""Keyhole's attention in place of FlashAttention's on a CUDA device. It has not run on one yet."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from keyhole.engines.vllm.backend import ServingBackend
from keyhole.engines.vllm.impl import ServingImpl
from keyhole.engines.vllm.metadata import BatchBuilder
from keyhole.storage import Pages, split_pages


class CUDAImpl(ServingImpl, FlashAttentionImpl):
    """A layer on a CUDA device, in FlashAttention's pages, which its own operation writes."""

    own = FlashAttentionImpl

    @staticmethod
    def pages(kv_cache: Tensor, head_size: int) -> Pages:
        return split_pages(kv_cache, head_size)


class CUDABuilder(BatchBuilder, FlashAttentionMetadataBuilder):
    """Metadata of a step, for layers of both kinds. What the host decides in a step cannot be captured."""

    supports_update_block_table = False

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:  # noqa: ARG003
        return AttentionCGSupport.NEVER


class CUDABackend(ServingBackend, FlashAttentionBackend):
    """vLLM's `FLASH_ATTN`."""

    impl = CUDAImpl
    builder = CUDABuilder
