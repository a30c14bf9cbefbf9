"""Decode steps of one layer whose keys and values lie in host memory, behind a resident buffer on the GPU."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.attention import attend_slots
from keyhole.bench.case import Case
from keyhole.bench.checks import check_close
from keyhole.bench.gpu.graphs import captured_run
from keyhole.bench.layers import layer_sizes
from keyhole.bench.result import Result, Timed
from keyhole.storage import Chosen, Lookups, PinnedStorage, ResidentRows
from keyhole.tuning.machine import implementation
from keyhole.tuning.synthetic import Synthetic
from keyhole.tuning.timing import CacheFlusher, Candidate, Times, clock

_WARM = 8  # steps that fill the buffer; they are not counted
_COPIES = 20


class Read(NamedTuple):
    """What a decode step reads: `query [1, H, D]`, `slots` int32 `[1, Hkv, S]`, all of which count."""

    query: Tensor
    slots: Tensor

    @property
    def counts(self) -> Tensor:
        """Int32 `[1, Hkv]`."""
        return torch.full_like(self.slots[..., 0], self.slots.shape[-1])


class Offloaded(NamedTuple):
    """What steps took, on average over the steps that count; times are medians in milliseconds.

    Attributes:
        hit_rate: of the reads of tokens behind the ring, those that the resident buffer answered.
        link_bytes: bytes of a step that came over the link.
        fetch_ms: finding what is missing and fetching it.
        step_ms: that, and the attention.
        copy_ms: a copy of `link_bytes` from pinned memory in one piece, the most that the link gives.
        device_bytes: held on the device.
    """

    hit_rate: float
    link_bytes: float
    fetch_ms: float
    step_ms: float
    copy_ms: float
    device_bytes: int

    @property
    def bandwidth(self) -> float:
        """Bytes a millisecond over the link while fetching."""
        return self.link_bytes / self.fetch_ms

    @property
    def link_share(self) -> float:
        """Of what a plain copy reaches."""
        return self.copy_ms / self.fetch_ms


def offload(
    case: Case, *, steps: int, flusher: CacheFlusher, alike: float = 0.9, cache: int = 0
) -> list[Result]:
    """As `measure`, as a table: fetching, and a whole step, against a plain copy of what is fetched."""
    found = measure(case, steps=steps, alike=alike, cache=cache)
    impl, read = implementation(torch.device(case.device)), case.read_tokens

    def timed(name: str, impl: str, nbytes: float, milliseconds: float) -> Timed:
        return Timed(Candidate(name, impl, lambda: None, nbytes, read), Times(milliseconds, milliseconds))

    ours = [
        timed("fetch into the resident buffer", impl, found.link_bytes, found.fetch_ms),
        timed("fetch and attend", impl, found.link_bytes + read * case.token_bytes, found.step_ms),
    ]
    copy = timed("pinned copy of as much", "torch", found.link_bytes, found.copy_ms)
    notes = [
        f"{found.hit_rate:.1%} of the reads behind the newest tokens are hits, cosine of queries {alike}; "
        f"{found.device_bytes / 2**20:.0f} MiB on the device; fetching reaches {found.link_share:.0%} of "
        "the bandwidth of a plain copy"
    ]
    return [Result("offload", layer_sizes(case), ours, [copy], flusher.bandwidth, notes)]


@torch.no_grad()
def measure(case: Case, *, steps: int, alike: float, cache: int) -> Offloaded:
    """Time steps that read `case.read_tokens` tokens, chosen by exact scores before.

    Args:
        alike: cosine of a step's query and the one before it.
        cache: bytes of the resident buffer; 0 is the default of `ResidentRows`.

    Raises:
        ValueError: nothing to read.
        CheckFailedError: the attention is wrong.
    """
    device = torch.device(case.device)
    if not 1 <= case.read_tokens <= case.tokens:
        raise ValueError(f"read_tokens={case.read_tokens} is out of range; give 1 to {case.tokens}")
    source = case.source()
    keys, values = source.keys_values(case.tokens)
    reads = drifting_reads(case, source, keys, _WARM + steps, alike)
    rows = ResidentRows(cache)
    rows.append(torch.cat([keys, values], dim=-1))
    fetched, lookups = _fetches(rows, reads)
    storage = PinnedStorage(ResidentRows(cache))
    storage.append(keys, values)
    stepped = _steps(case, storage, reads)
    _check(case, storage, keys, values, reads[-1])
    link_bytes = lookups.misses * case.token_bytes / case.kv_heads / steps
    return Offloaded(
        hit_rate=lookups.hits / max(1, lookups.hits + lookups.misses),
        link_bytes=link_bytes,
        fetch_ms=median(fetched) * 1e3,
        step_ms=median(stepped) * 1e3,
        copy_ms=_copy_seconds(round(link_bytes), device) * 1e3,
        device_bytes=storage.footprint.device,
    )


def drifting_reads(case: Case, source: Synthetic, keys: Tensor, steps: int, alike: float) -> list[Read]:
    """What queries read, each of which is like the one before it: the tokens of best logits."""
    query, reads = source.query(case.query_heads).float(), []
    for _ in range(steps):
        folded = query.reshape(case.kv_heads, -1, case.head_dim)
        logits = kernels.exact_scores(folded.to(keys.dtype), keys[0], 0, case.tokens).mean(1)
        slots = logits.topk(case.read_tokens).indices.sort().values.int()
        reads.append(Read(query.squeeze(2).to(keys.dtype), slots.unsqueeze(0)))
        query = alike * query + (1 - alike**2) ** 0.5 * source.query(case.query_heads).float()
    return reads


def _fetches(rows: ResidentRows, reads: list[Read]) -> tuple[list[float], Lookups]:
    """Seconds of finding and fetching, and what was found, both without the first steps."""
    slots, counts = reads[0].slots.clone(), reads[0].counts
    run = captured_run(lambda: rows.bring(Chosen(slots, counts)), slots.device)
    seconds, warm = [], rows.lookups
    for number, read in enumerate(reads):
        if number == _WARM:
            warm = rows.lookups
        slots.copy_(read.slots)
        seconds.append(clock(run, slots.device))
    found = (after - before for after, before in zip(rows.lookups, warm, strict=True))
    return seconds[_WARM:], Lookups(*found)


def _steps(case: Case, storage: PinnedStorage, reads: list[Read]) -> list[float]:
    """Seconds of fetching and attending, without the first steps."""
    query, slots, counts = reads[0].query.clone(), reads[0].slots.clone(), reads[0].counts
    run = captured_run(lambda: storage.attend(query, slots, counts, case.logits), slots.device)
    seconds = []
    for read in reads:
        query.copy_(read.query)
        slots.copy_(read.slots)
        seconds.append(clock(run, slots.device))
    return seconds[_WARM:]


def _check(case: Case, storage: PinnedStorage, keys: Tensor, values: Tensor, read: Read) -> None:
    """Raise CheckFailedError unless the attention is that over keys and values on the device."""
    found = storage.attend(*read, read.counts, case.logits)
    expected = attend_slots(read.query, keys, values, read.slots, read.counts, case.logits)
    check_close("attention behind a resident buffer", found.out, expected.out, case.torch_dtype)


def _copy_seconds(nbytes: int, device: torch.device) -> float:
    """Median seconds of copying so many bytes from host memory, pinned where there is a GPU."""
    here = torch.zeros(max(1, nbytes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.empty_like(here, device=device)
    return median(clock(lambda: there.copy_(here, non_blocking=True), device) for _ in range(_COPIES))
