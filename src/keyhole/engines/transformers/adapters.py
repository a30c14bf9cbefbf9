"""Adapters (peft) that are at work in a model, found by what their modules say of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def adapters_of(model: nn.Module) -> dict[str, Any]:
    """Adapters at work, with the factors they are scaled by, and merged ones; empty without any."""
    active: dict[str, set[float]] = {}
    merged: set[str] = set()
    for _, module in _tuned(model):
        merged.update(getattr(module, "merged_adapters", ()))
        for name in _at_work(module):
            scaling = getattr(module, "scaling", {})
            active.setdefault(name, set()).add(float(scaling.get(name, 1.0)))
    found = {
        "active": {name: sorted(scales) for name, scales in sorted(active.items())},
        "merged": sorted(merged),
    }
    return {kind: names for kind, names in found.items() if names}


def has_adapters(model: nn.Module) -> bool:
    """Whether modules of a model are wrapped by adapters, at work or not."""
    return any(True for _ in _tuned(model))


def idle_parts(model: nn.Module) -> set[str]:
    """Prefixes of parameters that belong to adapters which are not at work."""
    return {
        f"{path}.{part}.{name}."
        for path, module in _tuned(model)
        for part in (*module.adapter_layer_names, *getattr(module, "other_param_names", ()))
        if isinstance(held := getattr(module, part, None), (nn.ModuleDict, nn.ParameterDict))
        for name in held
        if name not in _at_work(module)
    }


def plain_name(name: str) -> str:
    """The name a parameter has without an adapter around its module."""
    return name.replace(".base_layer.", ".")


def _tuned(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        if hasattr(module, "adapter_layer_names") and hasattr(module, "active_adapters"):
            yield path, module


def _at_work(module: Any) -> list[str]:
    """The names of a module's adapters that change what it computes."""
    if module.disable_adapters:
        return []
    held = {name for part in module.adapter_layer_names for name in getattr(module, part, ())}
    merged = getattr(module, "merged_adapters", ())
    return [name for name in module.active_adapters if name in held and name not in merged]
