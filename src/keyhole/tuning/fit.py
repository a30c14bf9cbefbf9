"""Constants that explain measured steps: non-negative least squares of relative errors.

Steps of all methods and forms are explained together, so that what they have in common is one unknown:

    overhead    of a method, and in addition of each form of keys and values
    ranked      a rate of each method
    scanned     a rate of each method and form
    read        a rate of each form; of a method whose rows are of its own making, its own

Dense attention has an overhead and rates of its own in each form.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from keyhole.core.costs import DENSE, CostTable, Rates, Work
from keyhole.methods import METHODS
from keyhole.methods.facts import Facts
from keyhole.methods.work import dense_work, selecting_work
from keyhole.tuning.measure import Point

_TOLERANCE = 1e-9

Terms = dict[Hashable, float]


def fit(machine: str, points: Sequence[Point], provenance: dict[str, Any]) -> CostTable:
    """Constants for a class of machine from what was measured on it."""
    rows: list[Terms] = []
    times: list[float] = []
    dense: dict[tuple[str, Work], list[float]] = defaultdict(list)
    for point in points:
        work = selecting_work(point.method_read, point.heads, point.tokens, point.tokens)
        rows.append(terms(point.form, point.method, work))
        times.append(point.selecting)
        dense[point.form, dense_work(point.heads, point.form, point.tokens)].append(point.dense)
    rows += [terms(form, DENSE, work) for form, work in dense]
    times += [median(each) for each in dense.values()]
    unknown = solve(rows, times)
    rates: dict[str, dict[str, Rates]] = {}
    for form, name in dict.fromkeys(pair for p in points for pair in ((p.form, DENSE), (p.form, p.method))):
        rates.setdefault(form, {})[name] = _rates(form, name, unknown)
    return CostTable(machine, rates, provenance)


def terms(form: str, name: str, work: Work) -> Terms:
    """The unknowns that a step's microseconds are a sum of, each with how often it counts."""
    scanned, ranked, read = (amount / 1000 for amount in work)
    if name == DENSE:
        return {("overhead", name, form): 1.0, ("ranked", name, form): ranked, ("read", name, form): read}
    own = METHODS[name].facts.row != Facts._field_defaults["row"]
    return {
        ("overhead", name): 1.0,
        ("overhead of", form): 1.0,
        ("scanned", name, form): scanned,
        ("ranked", name): ranked,
        ("read", name if own else "", form): read,
    }


def solve(rows: Sequence[Terms], times: Sequence[float]) -> dict[Hashable, float]:
    """Unknowns, none negative, of which the rows are sums nearest to the times, by their relative errors."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    matrix = torch.tensor([[row.get(name, 0.0) for name in names] for row in rows], dtype=torch.float64)
    matrix /= torch.tensor(times, dtype=torch.float64)[:, None]
    scale = matrix.norm(dim=0).clamp(min=1e-30)
    found = non_negative(matrix / scale, torch.ones(len(times), dtype=torch.float64)) / scale
    return dict(zip(names, found.tolist(), strict=True))


def non_negative(matrix: Tensor, target: Tensor) -> Tensor:
    """The x >= 0 of least |matrix x - target| (Lawson and Hanson, "Solving Least Squares Problems", 1974)."""
    found = torch.zeros(matrix.shape[1], dtype=matrix.dtype)
    free = torch.zeros_like(found, dtype=torch.bool)
    for _ in range(3 * len(found)):
        gain = (matrix.T @ (target - matrix @ found)).masked_fill(free, -1.0)
        if gain.max() <= _TOLERANCE:
            break
        free[gain.argmax()] = True
        found = _descend(matrix, target, found, free)
    return found


def _descend(matrix: Tensor, target: Tensor, found: Tensor, free: Tensor) -> Tensor:
    """The best of the free unknowns; those that would become negative on the way are fixed at 0."""
    while True:
        best = torch.zeros_like(found)
        best[free] = torch.linalg.lstsq(matrix[:, free], target[:, None], driver="gelsd").solution[:, 0]
        negative = free & (best <= 0)
        if not negative.any():
            return best
        part = (found / (found - best))[negative].min()
        found = found + part * (best - found)
        free &= found > 1e-12
        found[~free] = 0


def _rates(form: str, name: str, unknown: dict[Hashable, float]) -> Rates:
    per_unit = {unit: terms(form, name, Work(**{unit: 1000.0})) for unit in Work._fields}
    fixed = terms(form, name, Work())
    overhead = sum(unknown[term] * count for term, count in fixed.items())
    rates = {
        unit: sum(unknown[term] * count for term, count in found.items()) - overhead
        for unit, found in per_unit.items()
    }
    return Rates(overhead, Work(**{unit: max(0.0, rate) for unit, rate in rates.items()}))
