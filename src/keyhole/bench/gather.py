"""`bench gather`: exact attention over chosen tokens, wherever they lie."""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.attention import attend_slots
from keyhole.bench.case import Case
from keyhole.bench.checks import check_close
from keyhole.bench.dense import dense_baselines
from keyhole.bench.layers import layer_sizes, require_layer_memory
from keyhole.bench.result import Result, compare
from keyhole.storage import KV_DTYPES, DeviceStorage, Storage, make_storage
from keyhole.tuning.machine import implementation
from keyhole.tuning.timing import CacheFlusher, Candidate


@torch.no_grad()
def gather(case: Case, *, rounds: int, flusher: CacheFlusher, impl: str = "auto") -> list[Result]:
    """Time `gather_attention` over random slots, and storages of fewer bits, against torch's dense calls.

    Raises:
        ValueError: nothing to read, or the case does not fit into memory.
        CheckFailedError: the attention is wrong.
    """
    read = case.read_tokens
    if not 1 <= read <= case.tokens:
        raise ValueError(f"read_tokens={read} is out of range; give 1 to {case.tokens}, the tokens there are")
    require_layer_memory(case, copies=2)  # the drawn tokens exist twice while they are stored
    source = case.source()
    query = source.query(case.query_heads)
    # Where decoding finds them: a cache's memory is laid out for reading scattered rows.
    storage = DeviceStorage()
    storage.append(*source.keys_values(case.tokens))
    keys, values = storage.keys(), storage.values()
    slots = _random_slots(case)
    counts = torch.full((case.kv_heads,), read, dtype=torch.int32)
    rows = query.reshape(case.kv_heads, -1, case.head_dim)

    def attend(impl: str) -> kernels.Attended:
        scale = case.logits.scale
        return kernels.gather_attention(rows, keys[0], values[0], slots, counts, scale=scale, impl=impl)

    found, expected = attend(impl), attend("reference")
    check_close("gather attention", found.out, expected.out, case.torch_dtype, float(values.abs().max()))
    check_close("its log-sum-exp", found.lse, expected.lse, case.torch_dtype)
    name = implementation() if impl == "auto" else impl
    moved = read * case.token_bytes + slots.nbytes
    candidates = [Candidate("gather_attention", name, lambda: attend(impl), moved, read)]
    candidates += [_quantised(precision, case, storage, query, slots) for precision in KV_DTYPES[1:]]
    baselines = dense_baselines(query, keys, values, case.logits.scale)
    return [compare("gather", layer_sizes(case), candidates, baselines, rounds=rounds, flusher=flusher)]


def _quantised(precision: str, case: Case, plain: Storage, query: Tensor, slots: Tensor) -> Candidate:
    """Attention over the slots of what `plain` holds, in a storage of fewer bits.

    Raises:
        CheckFailedError: the attention is not that over the numbers that are stored.
    """
    storage = make_storage("device", precision)
    storage.append(plain.keys(), plain.values())
    rows, chosen, counts = (
        query.squeeze(2),
        slots.unsqueeze(0),
        torch.full((1, case.kv_heads), slots.shape[1]),
    )
    found = storage.attend(rows, chosen, counts, case.logits)
    expected = attend_slots(rows, storage.keys(), storage.values(), chosen, counts, case.logits)
    check_close(f"attention over {precision}", found.out, expected.out, case.torch_dtype)
    moved = case.read_tokens * storage.token_bytes + slots.nbytes
    name = f"storage of {precision}"
    return Candidate(
        name,
        implementation(),
        lambda: storage.attend(rows, chosen, counts, case.logits),
        moved,
        slots.shape[1],
    )


def _random_slots(case: Case) -> Tensor:
    """Ascending slots, int32 `[Hkv, S]`, others for each KV head."""
    generator = torch.Generator().manual_seed(case.seed)
    drawn = [
        torch.randperm(case.tokens, generator=generator)[: case.read_tokens].sort().values
        for _ in range(case.kv_heads)
    ]
    return torch.stack(drawn).int()
