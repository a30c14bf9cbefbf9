"""Puts packed modules in the place of a model's linear and embedding modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.transformers.adapters import has_adapters
from keyhole.engines.transformers.packed.modules import PackedEmbedding, PackedLinear, is_packed
from keyhole.kernels.products.matrix import Matrix, Packing
from keyhole.kernels.products.packing import quantise

FORMS = {"int8": Packing.INT8, "int4": Packing.INT4_MIN}
# Of embeddings and the output layer: they are more sensitive, and a step reads them once.
ENDS = Packing.INT8
Pack = Callable[[str, nn.Module, bool], Matrix | None]


@torch.no_grad()
def pack_model(model: PreTrainedModel, form: str) -> None:
    """Quantise the weights of a model in place: those of its layers as `form`, "int8" or "int4".

    The embedding and the output layer become int8. Modules of other classes than torch's (experts in one
    tensor, embeddings that scale) stay as they are.

    Raises:
        UnsupportedModelError: nothing could be packed, something already is, or there are adapters.
        ValueError: a weight is not finite.
    """
    if is_packed(model):
        raise UnsupportedModelError("the model's weights are packed already; leave the form of weights out")
    if has_adapters(model):
        raise UnsupportedModelError(
            "the model has adapters, which would be rounded like its weights; merge them by "
            "merge_and_unload() and save the model, or leave the form of weights out"
        )

    def pack(_name: str, module: Any, end: bool) -> Matrix:
        bias: Tensor | None = getattr(module, "bias", None)
        packing = ENDS if end else FORMS[form]
        return quantise(module.weight.detach(), packing, None if bias is None else bias.detach())

    replace_modules(model, pack)
    if not is_packed(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no linear modules that can be packed; ask for its weights as-is"
        )


@torch.no_grad()
def replace_modules(model: PreTrainedModel, pack: Pack) -> None:
    """Replace linear modules of the text decoder, its embedding and the output layer, in place.

    Args:
        pack: gives the matrix of a module, None to leave it as it is. It takes the module's name, the module
            and whether it is the embedding or the output layer; an output layer that is tied to a packed
            embedding shares its matrix.
    """
    tied = _is_tied(model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    for module in list(model.get_decoder().modules()):
        if type(module) is nn.Linear and module is not head:
            _replace(model, names[id(module)], pack(names[id(module)], module, False))
    matrix = None
    if type(embedding) is nn.Embedding:
        matrix = pack(names[id(embedding)], embedding, True)
        _replace(model, names[id(embedding)], matrix)
    if type(head) is nn.Linear:
        shared = matrix if tied else None
        _replace(model, names[id(head)], shared or pack(names[id(head)], head, True))
    if isinstance(model.get_input_embeddings(), PackedEmbedding):
        model.all_tied_weights_keys = {}  # what is tied shares a matrix


def _is_tied(model: PreTrainedModel) -> bool:
    whole: Any = model
    embedding, head = whole.get_input_embeddings(), whole.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        return False
    return head.weight is embedding.weight


def _replace(model: nn.Module, name: str, matrix: Matrix | None) -> None:
    if matrix is None:
        return
    parent, _, own = name.rpartition(".")
    holder = model.get_submodule(parent)
    before: Any = getattr(holder, own)
    kind = PackedEmbedding if isinstance(before, nn.Embedding) else PackedLinear
    setattr(holder, own, kind(matrix, before.weight.dtype).train(before.training))
