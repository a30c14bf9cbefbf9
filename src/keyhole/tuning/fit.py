"""Rates that explain measured steps: non-negative least squares of relative errors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from keyhole.core.costs import DENSE, CostTable, Rates, Work
from keyhole.methods.work import dense_work, selecting_work
from keyhole.tuning.measure import Point

_SWEEPS = 20_000


def fit(machine: str, points: Sequence[Point], provenance: dict[str, Any]) -> CostTable:
    """Constants for a class of machine from what was measured on it."""
    rows: dict[tuple[str, str], list[tuple[Work, float]]] = defaultdict(list)
    for point in points:
        work = selecting_work(point.method_read, point.heads, point.tokens, point.tokens)
        rows[point.form, point.method].append((work, point.selecting))
        rows[point.form, DENSE].append((dense_work(point.heads, point.form, point.tokens), point.dense))
    rates: dict[str, dict[str, Rates]] = defaultdict(dict)
    for (form, name), measured in rows.items():
        rates[form][name] = fit_rates(measured)
    return CostTable(machine, dict(rates), provenance)


def fit_rates(measured: Sequence[tuple[Work, float]]) -> Rates:
    """The rates that come nearest to measured microseconds, by the relative error."""
    works = torch.tensor([work for work, _ in measured], dtype=torch.float64) / 1000
    times = torch.tensor([time for _, time in measured], dtype=torch.float64)
    columns = torch.cat([torch.ones(len(times), 1, dtype=torch.float64), works], 1)
    overhead, *units = _non_negative(columns / times[:, None], torch.ones_like(times)).tolist()
    return Rates(overhead, Work(*units))


def _non_negative(matrix: Tensor, target: Tensor) -> Tensor:
    """The x >= 0 of least |matrix x - target|, by descent along one coordinate after another."""
    scale = matrix.norm(dim=0).clamp(min=1e-30)
    scaled = matrix / scale
    gram, aim = scaled.T @ scaled, scaled.T @ target
    found = torch.zeros_like(aim)
    for _ in range(_SWEEPS):
        before = found.clone()
        for index in range(len(found)):
            step = (aim[index] - gram[index] @ found) / gram[index, index].clamp(min=1e-30)
            found[index] = (found[index] + step).clamp(min=0)
        if torch.allclose(found, before, rtol=1e-12, atol=1e-15):
            break
    return found / scale
