"""`bench gemv`: matrix-vector products that skip rows or columns, against the whole and torch's index_select.

Legend: M rows of the stored matrix (what is skipped), N its columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.bench.case import DTYPES, check_dtype
from keyhole.bench.checks import check_close
from keyhole.bench.result import Result, Sizes, compare
from keyhole.tuning.machine import implementation, require_memory
from keyhole.tuning.timing import CacheFlusher, Candidate


@torch.no_grad()
def gemv(
    rows: int,
    columns: int,
    dtype: str,
    active: Sequence[float],
    *,
    rounds: int,
    flusher: CacheFlusher,
    impl: str = "auto",
    seed: int = 0,
) -> list[Result]:
    """Time both products at each share of `active` rows of a `rows x columns` matrix.

    Raises:
        ValueError: a size or share out of range, or too large for memory.
        CheckFailedError: a product is wrong.
    """
    check_dtype(dtype)
    if rows < 1 or columns < 1:
        raise ValueError(f"a matrix of {rows} x {columns} is out of range; give at least 1 x 1")
    for share in active:
        if not 0 < share <= 1:
            raise ValueError(f"active share {share:g} is out of range; give a share in (0, 1]")
    kind = DTYPES[dtype]
    require_memory(f"a matrix of {rows} x {columns}", 3 * rows * columns * kind.itemsize)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).to(kind)
    results = []
    for share in active:
        chosen = torch.randperm(rows, generator=generator)[: max(1, round(share * rows))].sort().values
        problem = _Problem(weight, chosen, impl, generator)
        for entrants in (problem.skip_rows(share), problem.skip_columns(share)):
            sizes = Sizes(rows, None, None, columns, dtype)
            results.append(compare("gemv", sizes, entrants[:1], entrants[1:], rounds=rounds, flusher=flusher))
    return results


class _Problem:
    """One weight `[M, N]` and the rows of it that count."""

    def __init__(self, weight: Tensor, chosen: Tensor, impl: str, generator: torch.Generator) -> None:
        self.weight, self.chosen, self.impl = weight, chosen, impl
        self.input = torch.randn(weight.shape[1], generator=generator).to(weight.dtype)
        self.gate = torch.zeros(weight.shape[0], dtype=weight.dtype)
        drawn = torch.randn(chosen.numel(), generator=generator)
        self.gate[chosen] = (drawn + drawn.sign()).to(weight.dtype)  # never near 0

    def skip_rows(self, share: float) -> list[Candidate]:
        """y = gate * (weight @ x), rows with gate 0 not read."""
        weight, x, gate, chosen = self.weight, self.input, self.gate, self.chosen

        def ours() -> Tensor:
            return kernels.matvec_skip_rows(weight, x, gate, impl=self.impl)

        check_close("matvec_skip_rows", ours(), gate.double() * (weight.double() @ x.double()), weight.dtype)
        picked = gate[chosen]
        return self._entrants(
            f"skip_rows(active={share:g})",
            ours,
            lambda: gate * (weight @ x),
            lambda: picked * (weight.index_select(0, chosen) @ x),
        )

    def skip_columns(self, share: float) -> list[Candidate]:
        """y = gate @ weight, rows where gate is 0 not read: the weight is stored transposed."""
        weight, gate, chosen = self.weight, self.gate, self.chosen

        def ours() -> Tensor:
            return kernels.matvec_skip_columns(weight, gate, impl=self.impl)

        check_close("matvec_skip_columns", ours(), gate.double() @ weight.double(), weight.dtype)
        return self._entrants(
            f"skip_columns(active={share:g})",
            ours,
            lambda: gate @ weight,
            lambda: gate[chosen] @ weight.index_select(0, chosen),
        )

    def _entrants(self, name: str, ours, dense, selected) -> list[Candidate]:
        count, whole = self.chosen.numel(), self.weight.nbytes
        part = whole * count // self.weight.shape[0]
        impl = implementation() if self.impl == "auto" else self.impl
        return [
            Candidate(name, impl, ours, part, count),
            Candidate("torch dense", "torch", dense, whole, self.weight.shape[0]),
            # index_select copies the rows, which are then read: three times their bytes.
            Candidate("torch index_select", "torch", selected, 3 * part, count),
        ]
