"""What the layers of a transformers cache hold, as tensors and what else JSON can say, and back.

Keyhole's layers state themselves. Those of transformers (sliding, linear, with an indexer) are taken by their
public attributes: tensors, numbers, and dictionaries of such by integers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from keyhole.core.errors import SavedStateError, UnsupportedCacheError
from keyhole.engines.transformers.cache import is_served

_DERIVED = ("device", "dtype")  # of tensors that are there
# Of a layer of ours: stated by itself, made with the cache, or of no meaning between two calls.
_NEVER_SAVED = ("inner", "steps", "unfinished", "attention")
_PLAIN = (bool, int, float, str, type(None))
_FAILURES = (KeyError, IndexError, TypeError, AttributeError, RuntimeError, AssertionError, ValueError)

State = tuple[dict[str, Any], dict[str, Tensor]]


def layer_state(layer: Any) -> State:
    """What is to be said of a layer, and its tensors by name.

    Raises:
        UnsupportedCacheError: it holds something that cannot be saved.
    """
    facts: dict[str, Any] = {"class": type(layer).__name__}
    tensors: dict[str, Tensor] = {}
    if is_served(layer):
        facts |= {"length": layer.inner.length, "indexed": layer.inner.indexed}
        tensors |= {f"inner.{name}": tensor for name, tensor in layer.inner.state().items()}
    facts["attributes"] = {
        name: _stated(layer, name, value, tensors) for name, value in _attributes(layer).items()
    }
    return facts, tensors


def restore_layer(layer: Any, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Let a fresh layer hold what `layer_state` stated.

    Raises:
        SavedStateError: it is another kind of layer, or the tensors are not those of such a layer.
    """
    if facts["class"] != type(layer).__name__:
        raise SavedStateError(f"it was a {facts['class']}, and this model's is a {type(layer).__name__}")
    try:
        if is_served(layer):
            inner = {n.removeprefix("inner."): t for n, t in tensors.items() if n.startswith("inner.")}
            _check_kinds(inner)
            layer.inner.restore(inner, facts["indexed"])
            if layer.inner.length != facts["length"]:
                raise SavedStateError(f"it holds {layer.inner.length} tokens, not {facts['length']}")
        _set_attributes(layer, facts["attributes"], tensors)
    except SavedStateError:
        raise
    except _FAILURES as error:
        what = f"{type(error).__name__}: {error}"
        raise SavedStateError(f"the tensors are not those of a {facts['class']} ({what})") from error


def _check_kinds(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if name in ("storage.keys", "storage.values") and not tensor.is_floating_point():
            raise SavedStateError(f"{name} are {tensor.dtype}, not floating-point numbers")


def _attributes(layer: Any) -> dict[str, Any]:
    left_out = _DERIVED + (_NEVER_SAVED if is_served(layer) else ())
    public = {name: value for name, value in vars(layer).items() if not name.startswith("_")}
    return {name: value for name, value in public.items() if name not in left_out}


def _stated(layer: Any, name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """What JSON says in the place of a value; tensors go to `tensors` and are named."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict) and all(isinstance(key, int) for key in value):
        entries = {str(key): _stated(layer, f"{name}.{key}", one, tensors) for key, one in value.items()}
        return {"entries": entries}
    if isinstance(value, _PLAIN):
        return value
    raise UnsupportedCacheError(
        f"a {type(layer).__name__} with a {type(value).__name__} as its {name} cannot be saved"
    )


def _set_attributes(layer: Any, stated: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    known = _attributes(layer)
    if stated.keys() != known.keys():
        differing = ", ".join(sorted(stated.keys() ^ known.keys()))
        raise SavedStateError(f"layers of this version of transformers differ in {differing}")
    for name, value in stated.items():
        setattr(layer, name, _value(value, tensors))
    held = [tensors[name] for name in tensors if not name.startswith("inner.")]
    if not held:
        return
    for name, value in list(vars(layer).items()):
        if isinstance(value, Tensor):
            setattr(layer, name, value.to(held[0].device))
    for name in _DERIVED:
        if hasattr(layer, name) or not is_served(layer):
            setattr(layer, name, getattr(held[0], name))


def _value(stated: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(stated, dict):
        return stated
    if "tensor" in stated:
        return tensors[stated["tensor"]]
    return {int(key): _value(one, tensors) for key, one in stated["entries"].items()}


def check_finite(where: str, tensors: dict[str, Tensor]) -> None:
    """Raise SavedStateError if there is NaN among numbers, or infinity among keys and values."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        bad = tensor.isnan() if ".selector." in name or ".scorer." in name else ~torch.isfinite(tensor)
        if bad.any():
            raise SavedStateError(f"{where}: {name} holds NaN or infinity")
