"""A packed model as a directory: its configuration, and one safetensors file with all that it holds.

What modules share is written once. Tensors are read into memory of their own: mapped files would neither be
aligned as the native code wants it, nor leave memory when they are converted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from keyhole.engines.transformers.packed.modules import PackedEmbedding, PackedLinear
from keyhole.kernels.products.matrix import Matrix, Packing

NAME = "packed.safetensors"
_KINDS = {"linear": PackedLinear, "embedding": PackedEmbedding}
_DTYPES = {
    "U8": torch.uint8,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}


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
    with _if_there():
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


@contextmanager
def _if_there() -> Iterator[None]:
    try:
        yield
    except OSError:
        return


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
    def part(own: str) -> Tensor | None:
        return tensors.get(f"{name}.{own}")

    codes, scales, minima = part("codes"), part("scales"), part("minima")
    if codes is None or scales is None:
        raise ValueError(f"its weights lack codes or scales of {name!r}")
    low = None if minima is None else minima.view(torch.float16)
    packing, (rows, columns) = Packing[said["packing"]], said["shape"]
    matrix = Matrix(packing, rows, columns, codes, scales.view(torch.float16), low, part("bias"))
    parent, _, own = name.rpartition(".")
    holder: Any = model.get_submodule(parent)
    setattr(holder, own, _KINDS[said["kind"]](matrix, getattr(holder, own).weight.dtype))


class _Header(NamedTuple):
    entries: dict[str, Any]
    start: int


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with path.open("rb") as file:
            header = _header(file)
            about = json.loads(header.entries.pop("__metadata__")["keyhole"])
            return {name: _tensor(file, header.start, e) for name, e in header.entries.items()}, about
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the file {str(path)!r} is damaged ({error})") from error


def _header(file: BufferedReader) -> _Header:
    size = int.from_bytes(file.read(8), "little")
    if size > 100 << 20:
        raise ValueError("its header is too long")
    return _Header(json.loads(file.read(size)), 8 + size)


def _tensor(file: BufferedReader, start: int, entry: dict[str, Any]) -> Tensor:
    begin, end = entry["data_offsets"]
    tensor = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
    if tensor.nbytes != end - begin:
        raise ValueError("a tensor's size is not that of its shape")
    if end > begin:
        file.seek(start + begin)
        if file.readinto(tensor.flatten().view(torch.uint8).numpy().data) != end - begin:
            raise ValueError("it is cut short")
    return tensor
