"""Models whose weights stay the blocks of their GGUF file, read tensor by tensor.

Blocks of Q8_0, Q4_0 and Q4_1 are taken over bit for bit. Other tensors are dequantised by the package gguf;
as int8 or int4 they are quantised again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    read_field,
)

from keyhole.engines.transformers.packed import ENDS, FORMS, plain_packing, replace_modules
from keyhole.engines.transformers.packed.files import fill, skeleton
from keyhole.generation.gguf import generation_config
from keyhole.generation.keeping import Loaded
from keyhole.kernels.products.matrix import GROUP, Matrix, Packing
from keyhole.kernels.products.packing import pack_blocks, quantise

_PACKINGS = {
    GGMLQuantizationType.Q8_0: Packing.INT8,
    GGMLQuantizationType.Q4_0: Packing.INT4,
    GGMLQuantizationType.Q4_1: Packing.INT4_MIN,
}
_INT4 = (Packing.INT4, Packing.INT4_MIN)
# What these do to matrices of linear modules, if anything, is to sort their rows.
_KNOWN = ("TensorProcessor", "LlamaTensorProcessor", "Gemma2TensorProcessor", "NemotronTensorProcessor")


def read_blocks(path: Path, form: str, dtype: torch.dtype) -> Loaded:
    """The model of a GGUF file with packed weights.

    Args:
        form: "as-is", "int8" or "int4".
        dtype: of what is not packed.

    Raises:
        ValueError and what transformers raises: the file cannot be read, lacks weights, or its architecture
            has them in another order.
    """
    folder, file = str(path.parent), path.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = skeleton(AutoConfig.from_pretrained(folder, gguf_file=file), dtype)
    tensors = _Tensors(path, model)

    def pack(name: str, module: nn.Module, end: bool) -> Matrix | None:
        wanted = None if form == "as-is" else ENDS if end else FORMS[form]
        has_bias = getattr(module, "bias", None) is not None
        bias = tensors.numbers(f"{name}.bias") if has_bias else None
        if has_bias and bias is None:
            raise ValueError(f"its weights lack {name}.bias")
        return tensors.matrix(f"{name}.weight", wanted, bias)

    replace_modules(model, pack)
    with torch.no_grad():
        fill(model, tensors.rest(model))
    model.generation_config = generation_config(tokenizer)
    return Loaded(model, tokenizer)


class _Tensors:
    """Tensors of a GGUF file by the names that they have in a model."""

    def __init__(self, path: Path, model: PreTrainedModel) -> None:
        reader = GGUFReader(path)
        architecture = str(read_field(reader, "general.architecture")[0])
        kind = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
        if kind.__name__ not in _KNOWN:
            raise ValueError(
                f"GGUF files of the architecture {architecture} have weights in another order than their "
                "model; leave the form of weights out, and they are dequantised"
            )
        self._processor = kind(config=model.config.to_dict())
        self._names: dict[str, str] = get_gguf_hf_weights_map(model, self._processor)
        self._found = {self._names[t.name]: t for t in reader.tensors if t.name in self._names}

    def numbers(self, name: str) -> Tensor | None:
        """A tensor dequantised, float32; None if the file has none of that name."""
        found = self._found.get(name)
        if found is None:
            return None
        return torch.from_numpy(np.copy(self._processed(dequantize(found.data, found.tensor_type), found)))

    def matrix(self, name: str, wanted: Packing | None, bias: Tensor | None) -> Matrix | None:
        """A packed matrix of a form, or in that of the file; None if it has none of these."""
        found: Any = self._found.get(name)
        if found is None:
            return None
        packing = _PACKINGS.get(found.tensor_type)
        if packing is None or not (wanted in (None, packing) or (wanted in _INT4 and packing in _INT4)):
            numbers = None if wanted is None else self.numbers(name)
            return None if numbers is None or wanted is None else quantise(numbers, wanted, bias)
        rows, columns = int(found.shape[1]), int(found.shape[0])
        blocks = found.data.reshape(rows, columns // GROUP, -1)
        order = self._processed(np.arange(rows).reshape(rows, 1), found).reshape(-1)
        if order[0] == 0 and (np.diff(order) == 1).all():
            return pack_blocks(packing, torch.from_numpy(np.copy(blocks)), bias)
        return pack_blocks(packing, torch.from_numpy(blocks[order]), bias)

    def rest(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """What a model holds: of packed modules what they hold, everything else from the file."""
        packed = tuple(
            f"{name}." for name, module in model.named_modules() if plain_packing(module) is not None
        )
        held = {}
        for name, tensor in model.state_dict().items():
            own = name if name in self._found else _tied(model, name)
            numbers = tensor if name.startswith(packed) else self.numbers(own)
            if numbers is not None:
                held[name] = numbers
        return held

    def _processed(self, weights: np.ndarray, tensor: Any) -> np.ndarray:
        read = {"tensor_key_mapping": self._names, "parsed_parameters": {"tensors": {}}}
        return self._processor.process(weights=weights, name=tensor.name, **read).weights


def _tied(model: PreTrainedModel, name: str) -> str:
    """The name of the tensor that one shares its numbers with."""
    return (model.all_tied_weights_keys or {}).get(name, name)
