"""One digest for all weights of a model, read once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from transformers import PreTrainedModel

from keyhole.core.digest import digest, sample
from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.transformers.adapters import idle_parts, plain_name
from keyhole.engines.transformers.model import adapter_of


class _Known(NamedTuple):
    """The digest of a tensor, and what would be otherwise had it been written to."""

    tensor: ref[Tensor]
    stamp: tuple[Any, ...]
    digest: str


def weights_digest(model: PreTrainedModel, *, reread: bool = False) -> str:
    """The digest of parameters and lasting buffers: names as without adapters, shapes, dtypes, numbers.

    Adapters that are not at work count for nothing. Tensors are read again where their version, their memory
    or some of their numbers are others than when they were read. One number that was changed through `.data`
    or numpy leaves no such trace.

    Args:
        reread: read everything again.

    Raises:
        UnsupportedModelError: a tensor cannot be read, with its name.
    """
    _check_readable(model)
    known: dict[str, _Known] = adapter_of(model).memo("weight digests", dict)
    if reread:
        known.clear()
    of_all = hashlib.sha256()
    for name, tensor in sorted(counted_weights(model), key=lambda item: plain_name(item[0])):
        found = _digest(model, known, name, tensor)
        of_all.update(f"{plain_name(name)} {list(tensor.shape)} {tensor.dtype} {found}\n".encode())
    return of_all.hexdigest()


def counted_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters and lasting buffers by all their names, but those of adapters that are not at work."""
    idle = tuple(idle_parts(model))
    return ((name, tensor) for name, tensor in _tensors(model) if not f"{name}.".startswith(idle))


def _check_readable(model: PreTrainedModel) -> None:
    """Refuse weights that modules hold in a form of their own, as those of `quantize_dynamic` do."""
    for path, module in model.named_modules():
        for name, held in vars(module).items():
            if isinstance(held, torch.ScriptObject):
                raise UnsupportedModelError(
                    f"{path}.{name} are packed weights, which cannot be read, so nothing can be saved for "
                    "this model; quantise it with torchao or bitsandbytes, whose weights are tensors"
                )


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}", buffer


def _digest(model: PreTrainedModel, known: dict[str, _Known], name: str, tensor: Tensor) -> str:
    try:
        stamp = _stamp(tensor)
        held = known.get(name)
        if held is not None and held.tensor() is tensor and held.stamp == stamp:
            return held.digest
        found = _compute(_offloaded(model, name) if tensor.is_meta else tensor)
    except (NotImplementedError, RuntimeError, TypeError, KeyError, OSError) as error:
        raise UnsupportedModelError(
            f"{name}, {type(tensor).__name__} on {tensor.device}, cannot be read ({error}), so caches "
            "of this model cannot be saved; load it without offloading"
        ) from error
    known[name] = _Known(ref(tensor), stamp, found)
    return found


def _stamp(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.is_meta or hasattr(tensor, "__tensor_flatten__"):
        return ()
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.stride(), tensor.dtype, version, sample(tensor)


def _compute(tensor: Any) -> str:
    if not hasattr(tensor, "__tensor_flatten__"):
        return digest(tensor)
    # A tensor made of others, as quantised weights are.
    parts, about = tensor.__tensor_flatten__()
    return " ".join([*(_compute(getattr(tensor, part)) for part in parts), str(about)])


def _offloaded(model: PreTrainedModel, name: str) -> Tensor:
    """A tensor whose numbers accelerate holds elsewhere, on the CPU or a disk."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        hook = getattr(model.get_submodule(".".join(parts[:depth])), "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            held, relative = getattr(one, "weights_map", None), ".".join(parts[depth:])
            if held is not None and relative in held:
                return held[relative]
    raise NotImplementedError("its data are not in memory")
