"""A packed model as a directory: its configuration, and one safetensors file with all that it holds.

What modules share is written once. Tensors are copied to memory of their own: mapped files would neither be
aligned as the native code wants it, nor leave memory when they are converted.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from keyhole.engines.transformers.packed.modules import PackedEmbedding, PackedLinear
from keyhole.kernels.products.matrix import GROUP, TILE, Matrix, Packing

NAME = "packed.safetensors"
_KINDS = {"linear": PackedLinear, "embedding": PackedEmbedding}


def save_packed(model: PreTrainedModel, directory: Path) -> None:
    """Write a packed model into a directory, with its configuration.

    Raises:
        OSError: it could not be written.
    """
    tensors, same = _distinct(model)
    packed = {name: _described(module) for name, module in model.named_modules() if _described(module)}
    dtype = str(model.dtype).removeprefix("torch.")
    about = {"modules": packed, "same": same, "dtype": dtype}
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / NAME, metadata={"keyhole": json.dumps(about)})
    model.config.save_pretrained(directory)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)


def load_packed(directory: Path) -> PreTrainedModel:
    """The model of `save_packed`.

    Raises:
        ValueError: the file is damaged, or lacks tensors of the model.
        OSError: it cannot be read.
    """
    tensors, about = _read(directory / NAME)
    tensors |= {name: tensors[first] for name, first in about["same"].items()}
    model = skeleton(AutoConfig.from_pretrained(directory), getattr(torch, about["dtype"]))
    for name, said in about["modules"].items():
        _install(model, name, said, tensors)
    with torch.no_grad():
        fill(model, tensors)
    model.all_tied_weights_keys = {}
    with suppress(OSError):  # there may be none
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(directory)
    return model


def skeleton(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose parameters hold anything: memory that is not written to takes no room."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    return model.eval()


def fill(model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
    """Give parameters and lasting buffers their numbers.

    Raises:
        ValueError: some are missing, or of another shape.
    """
    held = model.state_dict(keep_vars=True)
    missing = sorted(set(held) - set(tensors))
    if missing:
        raise ValueError(f"its weights lack {len(missing)} tensors, {missing[0]!r} among them")
    for name, tensor in held.items():
        given = tensors[name]
        if tensor.shape != given.shape:
            raise ValueError(f"{name} is {list(given.shape)}, not {list(tensor.shape)}")
        if tensor.data_ptr() != given.data_ptr():
            tensor.data.copy_(given)


def _distinct(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by one name each, and the other names of those that have several."""
    first: dict[tuple[int, int], str] = {}
    tensors, same = {}, {}
    for name, tensor in model.state_dict().items():
        key = tensor.data_ptr(), tensor.nbytes
        if tensor.nbytes and key in first:
            same[name] = first[key]
        else:
            first[key] = name
            tensors[name] = tensor.contiguous()
    return tensors, same


def _described(module: nn.Module) -> dict[str, Any] | None:
    kind = next((name for name, one in _KINDS.items() if isinstance(module, one)), None)
    if kind is None:
        return None
    matrix = cast(PackedLinear, module).matrix
    shape = [matrix.rows, matrix.columns]
    return {"kind": kind, "packing": matrix.packing.name, "shape": shape}


def _install(model: nn.Module, name: str, said: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    packing, (rows, columns) = Packing[said["packing"]], said["shape"]
    parent, _, own = name.rpartition(".")
    holder: Any = model.get_submodule(parent)
    weight = getattr(holder, own).weight
    if list(weight.shape) != [rows, columns]:
        raise ValueError(f"{name} is {[rows, columns]}, not {list(weight.shape)}")
    parts = {kind: tensors.get(f"{name}.{kind}") for kind in ("codes", "scales", "minima")}
    _check_parts(name, packing, rows, columns, parts)
    codes, scales, minima = (
        part if part is None or part.dtype == torch.uint8 else part.view(torch.float16)
        for part in parts.values()
    )
    matrix = Matrix(packing, rows, columns, cast(Tensor, codes), scales, minima, tensors.get(f"{name}.bias"))
    setattr(holder, own, _KINDS[said["kind"]](matrix, weight.dtype))


def _check_parts(
    name: str, packing: Packing, rows: int, columns: int, parts: dict[str, Tensor | None]
) -> None:
    """Raise ValueError unless they are those of a packed matrix: native code reads them by its sizes."""
    tiles, groups = -(-rows // TILE), -(-columns // GROUP)
    side = [tiles, groups, TILE], torch.int16
    wanted: dict[str, Any] = {"codes": ([tiles, groups, packing.units, TILE, 4], torch.uint8), "scales": side}
    wanted["minima"] = side if packing is Packing.INT4_MIN else None
    for kind, part in parts.items():
        found = None if part is None else (list(part.shape), part.dtype)
        if found != wanted[kind]:
            raise ValueError(f"{kind} of {name!r} are {found}, not {wanted[kind]}")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["keyhole"])
            return {name: file.get_tensor(name).clone() for name in file.keys()}, about  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the file {str(path)!r} is damaged ({error})") from error
