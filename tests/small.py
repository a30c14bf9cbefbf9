"""Every registered method with options that fit tiny models: to be registered is to be tested."""

from dataclasses import fields, replace

from keyhole.core.budget import Budget
from keyhole.methods import METHODS, EvictionMethod, Method, Recipe, RetrievalMethod, ScoreWrapper

# Taken by the methods that have such an option.
_SMALL = {"sinks": 2, "window": 6, "subspaces": 4, "bits": 4, "iterations": 4, "rank": 64, "outliers": 2}
_SMALL |= {"keep": 1.0, "fine": 3, "coarse": 6, "block": 8, "representatives": 2, "future": 40, "stride": 4}
_SMALL |= {"tokens": 5}
_EVERYTHING = Budget(mass=1.0, floor=1_000_000)
_TAILED = ("oracle", "pqcache", "quest")  # logits of tokens that are exact, by codes, and not known


def small(name: str, budget: Budget | int | float | None = None) -> Method:
    """The method of that name, sized for sequences of about a hundred tokens."""
    kind = METHODS[name]
    known = {field.name for field in fields(kind)}
    method = kind(**{option: value for option, value in _SMALL.items() if option in known})
    return method if budget is None else replace(method, budget=Budget.parse(budget))


def full_budget(name: str) -> dict[str, Method | Recipe]:
    """The method where it keeps and reads everything, by name: without selecting, and by selecting all."""
    if name in EVICTING:
        return {name: replace(small(name, 1.0), every=1)}
    if name == "tail":
        return {f"tail-{other}": Recipe((small(other, _EVERYTHING), small("tail"))) for other in _TAILED}
    if name in WRAPPERS:
        return {name: Recipe((small(name), replace(small("snapkv", 1.0), every=1)))}
    if name == "chess":
        return {name: replace(small(name), sparsity=0)}
    if name not in SELECTIVE:
        return {name: small(name)}
    if name not in BY_MASS:
        return {f"{name}-all": small(name, 1.0)}
    return {f"{name}-all": small(name, 1.0), f"{name}-selected": small(name, _EVERYTHING)}


SELECTIVE = [name for name, kind in METHODS.items() if issubclass(kind, RetrievalMethod)]
# Those that may read as many tokens as the text asks for.
BY_MASS = [name for name in SELECTIVE if METHODS[name].options()["budget"][0].mass]
EVICTING = [name for name, kind in METHODS.items() if issubclass(kind, EvictionMethod)]
# Those that go with another method only.
BESIDE_OTHERS = ["tail", *(name for name, kind in METHODS.items() if issubclass(kind, ScoreWrapper))]
WRAPPERS = [name for name, kind in METHODS.items() if issubclass(kind, ScoreWrapper)]
# Those that drop tokens for good, by themselves or around another.
DROPPING = [*EVICTING, *WRAPPERS]
# Those that are dense attention at a full budget.
EXACT = [name for name in METHODS if name != "quantised"]
FULL_BUDGET = {key: method for name in EXACT for key, method in full_budget(name).items()}
FULL_BUDGET |= {
    "oracle-host-selected": replace(FULL_BUDGET["oracle-selected"], place="host"),
    "oracle-disk-selected": replace(FULL_BUDGET["oracle-selected"], place="disk", block_cache="1MB"),
}
