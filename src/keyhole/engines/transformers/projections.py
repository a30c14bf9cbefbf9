"""The projections of a model's attention layers, for the methods that ask for them.

Legend: B batch, H query heads, T tokens, D size of a query, Dv size of a value, E hidden size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.transformers.implementation import text_config
from keyhole.engines.transformers.packed import PackedLinear

_OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj", "wo")


class LayerProjections:
    """As `keyhole.core.model_info.Projections`, of the attention module `layer` of a model."""

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        self._name = type(model).__name__
        self._heads = text_config(model).num_attention_heads
        self._module = attention_module(model, layer)

    def queries(self, hidden: Tensor) -> Tensor:
        projection = self._linear("q_proj")
        size = getattr(self._module, "head_dim", None)
        if projection is None or projection.out_features != self._heads * (size or 0):
            raise self._unknown("make its queries by one linear projection, q_proj")
        queries = projection(hidden).unflatten(-1, (self._heads, size))
        return self._normalised(queries).transpose(1, 2)

    def _normalised(self, queries: Tensor) -> Tensor:
        """Queries `[B, T, H, D]` after the norm that some models have, over a head or over all of them."""
        norm: Any = getattr(self._module, "q_norm", None)
        if norm is None or isinstance(norm, nn.Identity):
            return queries
        weight = getattr(norm, "weight", None)
        if weight is not None and weight.shape in (queries.shape[-1:], queries.shape[-2:]):
            return norm(queries)
        if weight is not None and weight.shape == (queries.shape[-2] * queries.shape[-1],):
            return norm(queries.flatten(-2)).view(queries.shape)
        raise self._unknown("normalise its queries in a known way")

    def output(self) -> Tensor:
        for name in _OUTPUTS:
            projection = self._linear(name)
            if projection is not None and projection.in_features % self._heads == 0:
                return projection.weight.detach().T.unflatten(0, (self._heads, -1))
        raise self._unknown("have a linear output projection")

    def _linear(self, name: str) -> nn.Linear | PackedLinear | None:
        # Other classes, quantised or with adapters, hold their weights in another way.
        found = getattr(self._module, name, None)
        found = getattr(found, "stands_for", found)
        return found if type(found) in (nn.Linear, PackedLinear) else None

    def _unknown(self, what: str) -> UnsupportedModelError:
        kind = type(self._module).__name__
        return UnsupportedModelError(
            f"{self._name}: {kind} does not {what}; give a method that does not ask for it"
        )


def attention_module(model: PreTrainedModel, layer: int) -> nn.Module:
    """The attention module of a layer of the text decoder.

    Raises:
        UnsupportedModelError: there is not just one that says so.
    """
    found = [module for module in model.get_decoder().modules() if _attends(module, layer)]
    if len(found) != 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} has {len(found)} attention modules of layer "
            f"{layer}, so its projections are ambiguous; use a method that does not need them"
        )
    return found[0]


def _attends(module: nn.Module, layer: int) -> bool:
    if getattr(module, "layer_idx", None) != layer:
        return False
    children = {name for name, _ in module.named_children()}
    return not children.isdisjoint(_OUTPUTS) and "Attention" in type(module).__name__
