"""Steps per second of methods whose keys and values come over a link, with equal resident bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention.biased import CHANNELS
from keyhole.bench.case import Case
from keyhole.bench.checks import check_close
from keyhole.bench.offload.methods import SLOT, linked_layer, plain_layer
from keyhole.bench.offload.tier import Link, Tier
from keyhole.cache.layer import LayerCache

SPARE_SLOTS = 8  # blocks beyond those that a step reads
_TURN = 50  # steps after which another method has its turn
_CHECKED = 3  # steps compared with those on the device
_CHECKED_TOKENS = 6144


class Offloaded(NamedTuple):
    """What steps of one method took.

    Attributes:
        method: as it was given.
        computing: CPU seconds of all steps.
        crossing: seconds that fetching took, which is not overlapped with anything.
        wall: seconds by the clock, in which other processes count, and a link only if it waits.
        link_bytes: fetched in a step.
        hit_rate: of tokens, read from resident blocks; None where nothing counts them.
        gamma: mean share of a step's blocks that the one before had read; None where nothing counts them.
        device_bytes: of keys and values, held in fast memory.
    """

    method: str
    batch: int
    shortest: int
    longest: int
    steps: int
    computing: float
    crossing: float
    wall: float
    link_bytes: float
    hit_rate: float | None
    gamma: float | None
    device_bytes: int

    @property
    def steps_per_second(self) -> float:
        return self.steps / (self.computing + self.crossing)

    @property
    def link_share(self) -> float:
        """Of the time of a step."""
        return self.crossing / (self.computing + self.crossing)


class Running:
    """One method in the middle of its steps; all methods get the same tokens and queries."""

    def __init__(self, method: str, case: Case, lengths: list[int], link: Tier, resident: int) -> None:
        self.method, self.case, self.lengths, self.link = method, case, lengths, link
        self.layer = linked_layer(method, case, link, resident)
        self.text = Text(case, lengths)
        self.text.fill(self.layer)
        self.steps, self.computing, self.wall = 0, 0.0, 0.0
        self._warm_up()

    def _warm_up(self) -> None:
        """The first step fetches all, and takes what is derived from the prompt."""
        query, keys, values, mask = self.text.next(self.layer.length, 0.0)
        self.layer.append(keys, values)
        self.layer.attend(query, self.case.logits, mask=mask)

    def run(self, alike: float, steps: int) -> None:
        """Take steps, whose queries have a cosine of `alike` with those before."""
        for _ in range(steps):
            query, keys, values, mask = self.text.next(self.layer.length, alike)
            self.link.begin()
            begin, busy = time.perf_counter(), time.process_time()
            self.layer.append(keys, values)
            self.layer.attend(query, self.case.logits, mask=mask)
            busy, wall = time.process_time() - busy, time.perf_counter() - begin
            self.computing, self.wall = self.computing + busy, self.wall + wall
            self.link.end(wall, busy)
        self.steps += steps

    def found(self) -> Offloaded:
        usage, held = self.layer.usage, self.layer.storage.footprint.device
        looked = usage.hits + usage.misses
        return Offloaded(
            self.method,
            self.case.batch,
            min(self.lengths),
            max(self.lengths),
            self.steps,
            self.computing - self.link.waited,
            self.link.seconds,
            self.wall,
            self.link.moved / self.steps,
            usage.hits / looked if looked else None,
            usage.gamma,
            held,
        )


class Text:
    """Random tokens of rows of different lengths, padded at the left, and queries that drift."""

    def __init__(self, case: Case, lengths: list[int]) -> None:
        self.case, self.source = case, case.source()
        self.padding = torch.tensor([max(lengths) - length for length in lengths])
        self.tokens = max(lengths)
        self._query = self.source.query(case.query_heads).float()

    def fill(self, layer: LayerCache) -> None:
        for begin in range(0, self.tokens, 4096):
            layer.append(*self.source.keys_values(min(4096, self.tokens - begin)))
        layer.prepare(self.mask(layer.length))

    def next(self, length: int, alike: float) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Query, keys and values of the next token, and the mask."""
        fresh = self.source.query(self.case.query_heads).float()
        self._query = alike * self._query + (1 - alike**2) ** 0.5 * fresh
        return self._query.to(self.case.torch_dtype), *self.source.keys_values(1), self.mask(length + 1)

    def mask(self, length: int) -> Tensor | None:
        if not self.padding.any():
            return None
        return torch.arange(length) >= self.padding.view(-1, 1, 1, 1)


@torch.no_grad()
def offload(
    case: Case,
    methods: Sequence[str],
    *,
    steps: int,
    alike: float,
    resident: int,
    tier: Callable[[], Tier],
    progress: Callable[[str], object] = lambda _: None,
) -> list[Offloaded]:
    """Time `steps` of each method in turns, with `resident` bytes a layer.

    Args:
        tier: makes the slower place of a method.

    Raises:
        SpecError, ValueError: a method cannot be read or placed, or needs more resident bytes.
        CheckFailedError: a method attends otherwise than with everything on the device.
    """
    if not 0 <= alike <= 1:
        raise ValueError(f"alike={alike} is out of range; give a cosine, 0 to 1")
    for method in methods:
        progress(f"checking {method}")
        _check(method, case, resident)
    lengths = prompt_lengths(case)
    running = []
    for method in methods:
        progress(f"filling {method}")
        running.append(Running(method, case, lengths, tier(), resident))
    for begin in range(0, steps, _TURN):
        progress(f"step {begin} of {steps}")
        for each in running:
            each.run(alike, min(_TURN, steps - begin))
    return [each.found() for each in running]


def prompt_lengths(case: Case) -> list[int]:
    """Different lengths of the rows of a batch, from half of the tokens to all of them."""
    generator = torch.Generator().manual_seed(case.seed)
    drawn = torch.rand(case.batch - 1, generator=generator) / 2 + 0.5
    return [case.tokens, *(int(share * case.tokens) for share in drawn.tolist())]


def resident_bytes(case: Case, read: int) -> int:
    """What the slots of a method take that reads so many tokens, the bias of nosa among it."""
    slots = -(-read // SLOT) + SPARE_SLOTS
    token = case.kv_heads * 2 * (case.head_dim + CHANNELS) * case.torch_dtype.itemsize
    return slots * SLOT * token * case.batch


def _check(method: str, case: Case, resident: int) -> None:
    """Compare a few steps with those of a layer on the device."""
    if method == "dense":
        return
    small = replace(case, tokens=min(case.tokens, _CHECKED_TOKENS), batch=min(case.batch, 2))
    lengths = prompt_lengths(small)
    texts = [Text(small, lengths) for _ in range(2)]
    layers = [linked_layer(method, small, Link(1.0), resident), plain_layer(method, small)]
    outs: list[list[Tensor]] = []
    for layer, text in zip(layers, texts, strict=True):
        text.fill(layer)
        outs.append([_step(layer, text, small) for _ in range(_CHECKED)])
    for found, expected in zip(*outs, strict=True):
        check_close(f"{method} over a link", found, expected, case.torch_dtype)


def _step(layer: LayerCache, text: Text, case: Case) -> Tensor:
    query, keys, values, mask = text.next(layer.length, 0.9)
    layer.append(keys, values)
    return layer.attend(query, case.logits, mask=mask)
