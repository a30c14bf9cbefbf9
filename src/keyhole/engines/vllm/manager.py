"""Which blocks a request of a served layer takes, keeps, and finds in the prefix cache."""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHashList, KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry
from vllm.v1.request import Request

from keyhole.engines.vllm.spec import FIRST, LAST, KeyholeSpec

# Requests that have had blocks, by the list of their hashes: all that a look-up in the cache is told.
_BEGUN: WeakValueDictionary[int, Request] = WeakValueDictionary()


class KeyholeManager(FullAttentionManager):
    """vLLM's manager of full attention, with shorter prefix hits, and blocks that are given back.

    A hit leaves as much of a prompt to compute as the method looks at, and never reaches behind the prompt of
    a request that was preempted, so that what is generated does not depend on what is cached. Blocks of
    generated tokens are cached only where the method's are those of a prompt.

    Where keys and values are mirrored, all blocks but the first and the newest are given back as soon as
    their tokens are processed. They stay in the prefix cache until they are taken.
    """

    def __init__(self, kv_cache_spec: KeyholeSpec, *args: Any, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, *args, **kwargs)
        if kv_cache_spec.most_blocks is not None:
            self.max_admission_blocks_per_request = kv_cache_spec.most_blocks

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: BlockHashList,
        max_length: int,
        kv_cache_group_ids: list[int],
        block_pool: BlockPool,
        kv_cache_spec: Any,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[tuple[list[KVCacheBlock], ...], int]:
        """The longest prefix of at most `max_length` tokens in the cache, as far as the method may use it."""
        # Hashes tell a new request's length to a block, whatever another group of layers has cut from it.
        length = max(max_length + 1, len(block_hashes) * block_pool.hash_block_size)
        begun = _BEGUN.get(id(block_hashes))
        prompt = length if begun is None else min(length, begun.num_prompt_tokens)
        longest = min(max_length, kv_cache_spec.hits.longest(prompt))
        if kv_cache_spec.most_blocks is not None:
            # What is hit is taken at once, and the first piece that is computed must fit beside it.
            room = block_pool.num_gpu_blocks - 1 - kv_cache_spec.most_blocks
            longest = min(longest, max(room, 0) * kv_cache_spec.block_size)
        return super().find_longest_cache_hit(
            block_hashes, longest, kv_cache_group_ids, block_pool, kv_cache_spec, *args, **kwargs
        )

    def cache_blocks(self, request: Request, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        """Put a request's whole blocks among its first `num_tokens` into the cache."""
        _BEGUN[id(request.block_hashes)] = request
        spec = self.kv_cache_spec
        assert isinstance(spec, KeyholeSpec)
        if not spec.hits.generated:
            num_tokens = min(num_tokens, request.num_prompt_tokens)
        super().cache_blocks(request, num_tokens, *args, **kwargs)

    def remove_skipped_blocks(
        self,
        request_id: str,
        processed_computed_tokens: int,
        num_prompt_tokens: int | None = None,  # noqa: ARG002
    ) -> None:
        """Give back what a request no longer needs, of which so many tokens are processed."""
        if self.max_admission_blocks_per_request is not None:
            whole = processed_computed_tokens // self.block_size
            self._remove_blocks_in_range(request_id, FIRST, whole - LAST)


def register_specs() -> None:
    """Let vLLM know the spec and its manager; again does nothing."""
    # Without vLLM's own specs registered before, it would take ours for all there are.
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(KeyholeSpec, KeyholeManager, FullAttentionSpec)
