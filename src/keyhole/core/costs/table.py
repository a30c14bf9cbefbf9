"""Constants of the cost model, as the package ships them or `keyhole tune` has written them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import median_high
from typing import Any

from keyhole.core.costs.model import Rates, Work
from keyhole.core.costs.places import choice, shipped_file, user_file

FORMAT = 1
DENSE = "dense"
FORMS = ("float32", "bfloat16", "int8", "int4")
MACHINES = ("avx512", "avx2", "base", "none", "cuda")


@dataclass(frozen=True, eq=False)
class CostTable:
    """The rates of methods on one class of machine. Equal to itself only, so that it can key a cache.

    Attributes:
        machine: one of `MACHINES`: the level of the native kernels, `none` without them, or `cuda`.
        rates: by the form of keys and values one of `FORMS`, then by method;
            `DENSE` is attention over everything.
        provenance: how the constants were obtained.
        tuned: whether the user's machine was measured.
    """

    machine: str
    rates: dict[str, dict[str, Rates]]
    provenance: dict[str, Any] = field(default_factory=dict)
    tuned: bool = False

    @property
    def source(self) -> str:
        """In a few words, where the constants come from."""
        return f"tuned ({self.provenance.get('date', '?')})" if self.tuned else "shipped"

    def of(self, form: str, method: str) -> Rates:
        """The rates of a method; of one that was not measured, each rate's median over those that were."""
        known = self.rates[form]
        return known[method] if method in known else _typical([r for n, r in known.items() if n != DENSE])

    def text(self, **more: Any) -> str:
        """The file that holds it; a line for each method's rates and for each item of a list in `more`."""
        rates = {form: {name: _written(r) for name, r in known.items()} for form, known in self.rates.items()}
        parts = {"format": FORMAT, "machine": self.machine, "provenance": self.provenance, "rates": rates}
        return _lines(parts | more, 3) + "\n"


@lru_cache(maxsize=16)
def read_table(path: Path, *, tuned: bool) -> CostTable:
    """The constants in a file.

    Raises:
        ValueError: it is damaged, or of another format.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["format"] != FORMAT:
            raise ValueError(f"format {held['format']} is not {FORMAT}")
        rates = {form: {n: _read(r) for n, r in known.items()} for form, known in held["rates"].items()}
        if missing := [form for form in FORMS if DENSE not in rates.get(form, ())]:
            raise ValueError(f"no rates of dense attention over {missing[0]}")
        return CostTable(held["machine"], rates, held["provenance"], tuned)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"cost constants in {path} cannot be used ({error}); measure them again with `keyhole tune`, "
            "or remove them with `keyhole tune --reset`"
        ) from error


def cost_table(machine: str) -> CostTable | None:
    """The constants in use for a class of machine; None where KEYHOLE_COSTS=zero makes selecting free."""
    chosen = choice()
    if chosen == "zero":
        return None
    own = user_file(machine)
    if chosen != "shipped" and _exists(own):
        return read_table(own, tuned=True)
    return read_table(shipped_file(machine), tuned=False)


@lru_cache(maxsize=16)
def _exists(path: Path) -> bool:
    return path.exists()


def forget() -> None:
    """Look at the files again, which have changed."""
    read_table.cache_clear()
    _exists.cache_clear()


def _typical(known: list[Rates]) -> Rates:
    """Of an even number the higher middle one. A rate of 0 counts: the work was fitted as another kind."""
    units = (median_high(rates) for rates in zip(*(each.per_unit for each in known), strict=True))
    return Rates(median_high(each.overhead for each in known), Work(*units))


def _read(held: dict[str, float]) -> Rates:
    rates = Rates(held["overhead"], Work(**{name: held.get(name, 0.0) for name in Work._fields}))
    if not all(type(number) in (int, float) and 0 <= number < 1e9 for number in (rates[0], *rates[1])):
        raise ValueError(f"rates {held} are not all numbers of at least 0")
    if unknown := set(held) - {"overhead", *Work._fields}:
        raise ValueError(f"unknown rate {unknown.pop()!r}")
    return rates


def _written(rates: Rates) -> dict[str, float]:
    units = {name: float(f"{rate:.4g}") for name, rate in rates.per_unit._asdict().items() if rate}
    return {"overhead": round(rates.overhead, 1)} | units


def _lines(value: Any, depth: int, indent: str = "") -> str:
    """JSON with a line for each entry down to a depth."""
    if depth == 0 or not isinstance(value, dict | list) or not value:
        return json.dumps(value)
    inner = f"{indent} "
    if isinstance(value, list):
        rows = [inner + json.dumps(each) for each in value]
        return "[\n" + ",\n".join(rows) + f"\n{indent}]"
    rows = [f"{inner}{json.dumps(key)}: {_lines(each, depth - 1, inner)}" for key, each in value.items()]
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
