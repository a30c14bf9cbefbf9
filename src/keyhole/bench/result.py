"""What one measurement found: candidates and baselines with their times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from keyhole.bench.rows import Row
from keyhole.tuning.timing import CacheFlusher, Candidate, Times, interleave

_NOISY = 1.5  # median over best from which a measurement is called noisy


class Sizes(NamedTuple):
    """The columns of a row that say how large the problem was."""

    tokens: int
    query_heads: int | None
    kv_heads: int | None
    head_dim: int | None
    dtype: str
    batch: int = 1


class Timed(NamedTuple):
    """A candidate and its times."""

    candidate: Candidate
    times: Times

    def share(self, bandwidth: float) -> float:
        """Share of a bandwidth in bytes a millisecond that moving its bytes in its time takes."""
        return self.candidate.bytes / self.times.median / bandwidth


class Result(NamedTuple):
    """One table: `timed` against `baselines`; `bandwidth` in bytes a millisecond; `notes` for the reader."""

    op: str
    sizes: Sizes
    timed: list[Timed]
    baselines: list[Timed]
    bandwidth: float
    notes: list[str]

    @property
    def rows(self) -> list[Row]:
        """Every candidate against every baseline."""
        return [self._row(one, baseline) for one in self.timed for baseline in self.baselines]

    def _row(self, one: Timed, baseline: Timed) -> Row:
        return Row(
            op=self.op,
            method=one.candidate.name,
            impl=one.candidate.impl,
            **self.sizes._asdict(),
            read_tokens=one.candidate.read_tokens,
            ms=one.times.median,
            bytes=round(one.candidate.bytes),
            bandwidth_share=one.share(self.bandwidth),
            baseline=baseline.candidate.name,
            baseline_ms=baseline.times.median,
            ratio=baseline.times.median / one.times.median,
        )


def compare(
    op: str,
    sizes: Sizes,
    candidates: Sequence[Candidate],
    baselines: Sequence[Candidate],
    *,
    rounds: int,
    flusher: CacheFlusher,
    notes: Sequence[str] = (),
) -> Result:
    """Time candidates and baselines in turn."""
    everyone = [*candidates, *baselines]
    timed = [
        Timed(*pair)
        for pair in zip(everyone, interleave(everyone, rounds=rounds, flusher=flusher), strict=True)
    ]
    count = len(candidates)
    return Result(op, sizes, timed[:count], timed[count:], flusher.bandwidth, [*notes, *noise(timed)])


def noise(timed: Sequence[Timed]) -> list[str]:
    """A warning where medians are so far above the best times that something else was running."""
    worst = max(one.times.median / one.times.best for one in timed)
    if worst < _NOISY:
        return []
    return [f"NOISY: a median is {worst:.1f} times the best time; measure again when nothing else is running"]
