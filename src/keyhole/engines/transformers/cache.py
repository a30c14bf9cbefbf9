"""transformers caches whose full-attention layers are Keyhole's."""

from __future__ import annotations

from functools import partial, reduce
from typing import Any, NoReturn, TypeGuard

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
)

from keyhole.attention import Logits
from keyhole.cache.layer import LayerCache
from keyhole.cache.request import Request
from keyhole.cache.usage import Usage
from keyhole.core.break_even import ALWAYS, BreakEven
from keyhole.core.costs import Heads
from keyhole.core.errors import UnsupportedCacheError
from keyhole.core.model_info import ModelInfo
from keyhole.engines.transformers.compat import CACHE
from keyhole.engines.transformers.devices import input_device
from keyhole.engines.transformers.fingerprint import fingerprint
from keyhole.engines.transformers.handle import KVHandle
from keyhole.engines.transformers.hybrid import HybridLayer
from keyhole.engines.transformers.phase import generating
from keyhole.engines.transformers.projections import LayerProjections
from keyhole.engines.transformers.rope import layer_rope
from keyhole.engines.transformers.sizes import attention_sizes, position_range
from keyhole.engines.transformers.sparse_ffn.skipping import sparse_steps
from keyhole.engines.transformers.stand_in_activations import stand_in_activations
from keyhole.feedforward import Activated, FeedForward, Steps
from keyhole.methods.pays import break_evens
from keyhole.methods.recipe import Recipe
from keyhole.storage import Footprint


class KeyholeLayer(DynamicLayer):
    """A transformers cache layer that keeps its tokens in a LayerCache and passes handles to the model.

    Its cache's decode steps skip weights as `steps` says, which all layers of the cache share. From `update`
    to the end of `attend` it is `unfinished`.
    """

    def __init__(self, inner: LayerCache, steps: Steps | None = None) -> None:
        super().__init__()
        self.inner, self.steps = inner, steps
        self.unfinished = False

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):  # noqa: ARG002
        self.unfinished = True
        self.inner.arrive(key_states.shape[2], generating)
        # Without history: no gradient passes through a cache, and copies could not be made of it.
        self.inner.append(key_states.detach(), value_states.detach())
        self.is_initialized = True
        return KVHandle(self), KVHandle(self)

    @property
    def request(self) -> Request:
        """What the layers of the cache share."""
        return self.inner.request

    @property
    def newest(self) -> Tensor:
        """The newest token's keys, `[B, Hkv, 1, D]`."""
        return self.inner.newest

    def attend(self, query: Tensor, logits: Logits, *, mask: Tensor | None = None) -> Tensor:
        """Attention of the newest tokens' `query [B, H, Q, D]`; returns `[B, H, Q, Dv]`."""
        out = self.inner.attend(query, logits, mask=mask)
        self.unfinished = False
        return out

    def get_seq_length(self) -> int:
        return self.inner.length

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the negative of the tokens to remove, not {tokens_to_remove}")
        # transformers 5.16 counts rejected draft tokens in a tensor.
        self.inner.crop(max(self.inner.length + int(tokens_to_remove), 0))

    def reset(self) -> None:
        self.inner.crop(0)
        self.unfinished = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.inner.reorder(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.inner.length:
            self.inner.reorder(self._rows()[indices.cpu()])

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.inner.length:
            self.inner.reorder(self._rows().repeat_interleave(repeats))

    def offload(self) -> NoReturn:
        raise UnsupportedCacheError(
            "Keyhole places keys and values itself; make the cache without offloading, and use the option "
            "place"
        )

    prefetch = offload

    def _rows(self) -> Tensor:
        return torch.arange(self.inner.newest.shape[0])


def adopt(cache: Cache, recipe: Recipe, model: PreTrainedModel) -> None:
    """Put Keyhole's layers in the place of plain full-attention layers; tokens already there are taken over.

    Raises:
        UnsupportedCacheError: a cache of a kind that cannot be taken over; it is left as it was.
        NonFiniteError: as that, for NaN or infinity among the tokens already there.
    """
    if not isinstance(cache, DynamicCache) or cache.offloading:
        kind = type(cache).__name__ + (" with offloading" if getattr(cache, "offloading", False) else "")
        raise UnsupportedCacheError(
            f"Keyhole cannot take over a {kind}; leave out {CACHE} and give cache_implementation=None, for "
            "the model's generation_config may name another, or pass keyhole.KeyholeCache(model, method) as "
            f"{CACHE}"
        )
    kinds = layer_kinds(model)
    layers: list[Any] = list(cache.layers) or _unfilled(cache, kinds)
    served = [i for i, (layer, kind) in enumerate(zip(layers, kinds, strict=False)) if _is_full(layer, kind)]
    info = _setting(model, served, _break_even(recipe, model))
    inners, feedforward = recipe.layers(info), recipe.feedforward(info)
    steps = Steps(feedforward) if feedforward is not None and feedforward.thresholds else None
    for index, inner in zip(served, inners, strict=True):
        held, layers[index] = layers[index], _stand_in(layers[index], inner, steps)
        if held.get_seq_length():
            inner.append(held.keys.detach(), held.values.detach())
            layers[index].is_initialized = True
    if not cache.layers:
        cache.layer_class_to_replicate = None
    cache.layers = layers


def check_method(recipe: Recipe, model: PreTrainedModel) -> FeedForward | None:
    """Make a method's layers once, so that what it refuses of a model shows before a request does.

    Returns its thresholds for weights, which are the same for all requests.

    Raises:
        UnsupportedModelError: the method needs what this model's layers do not offer.
        ValueError: a file given to the method is missing, damaged or of another model.
    """
    info = setting_of(model)
    recipe.layers(info)
    return recipe.feedforward(info)


def setting_of(model: PreTrainedModel) -> ModelInfo:
    """What methods know of a model whose caches are not made yet."""
    return _setting(model, [place for place, kind in enumerate(layer_kinds(model)) if _is_full(kind, kind)])


def _setting(model: PreTrainedModel, served: list[int], pays: BreakEven = ALWAYS) -> ModelInfo:
    return ModelInfo(
        tuple(served),
        pays,
        partial(layer_rope, model),
        partial(fingerprint, model),
        partial(stand_in_activations, model),
        partial(LayerProjections, model),
        input_device(model),
        position_range(model),
    )


def _break_even(recipe: Recipe, model: PreTrainedModel) -> BreakEven:
    """Tokens from which on the recipe pays on this model; 0 where it does not ask for that."""
    if recipe.retrieval is None or recipe.retrieval.dense_below != "auto":
        return ALWAYS
    sizes = attention_sizes(model.config)
    if sizes is None:
        return ALWAYS
    return break_evens(recipe, Heads(*sizes, sizes.head_dim, model.dtype), model.device)


def layer_kinds(model: PreTrainedModel) -> list[Any]:
    """An empty cache layer for each layer of the model, of the class transformers would use."""
    return DynamicCache(config=model.config).layers


def can_serve_layers(model: PreTrainedModel) -> bool:
    """Whether any layer attends to the whole sequence, by a cache layer that Keyhole's can stand in for."""
    return any(_is_full(kind, kind) for kind in layer_kinds(model))


def is_adopted(cache: Cache) -> bool:
    """Whether Keyhole's layers are in the cache already."""
    return any(is_served(layer) for layer in getattr(cache, "layers", ()))


def is_served(layer: object) -> TypeGuard[KeyholeLayer | HybridLayer]:
    """Whether Keyhole keeps the keys and values of a cache layer, as its `inner`."""
    return isinstance(layer, KeyholeLayer | HybridLayer)


def _is_full(layer: object, kind: object) -> bool:
    full = (DynamicLayer, LinearAttentionAndFullAttentionLayer)
    return type(layer) is type(kind) and type(layer) in full


def _stand_in(held: DynamicLayer, inner: LayerCache, steps: Steps | None) -> KeyholeLayer | HybridLayer:
    layer = KeyholeLayer(inner, steps)
    return HybridLayer(held, layer) if isinstance(held, LinearAttentionAndFullAttentionLayer) else layer


def _unfilled(cache: DynamicCache, kinds: list) -> list:
    """The layers an empty cache would grow; made without a configuration, it keeps sliding layers whole."""
    if cache.layer_class_to_replicate is None:
        return kinds
    return [DynamicLayer() if isinstance(kind, DynamicSlidingWindowLayer) else kind for kind in kinds]


def served_layers(cache: Cache) -> list[LayerCache]:
    """The layers of a cache that Keyhole keeps; sliding and linear layers are not among them."""
    return [layer.inner for layer in cache.layers if isinstance(layer, KeyholeLayer | HybridLayer)]


def request_of(cache: Cache) -> Request | None:
    """What the served layers of a cache share; None where there are none."""
    return next((layer.request for layer in served_layers(cache)), None)


def end_prompt(cache: Cache) -> None:
    """All that the cache holds is a prompt, and a single token that comes next is a generated one."""
    request = request_of(cache)
    if request is not None:
        request.prompt_length = cache.get_seq_length()


def usage(cache: Cache) -> Usage:
    """What decoding with this cache has read so far, over all served layers."""
    return reduce(lambda total, layer: total + layer.usage, served_layers(cache), Usage())


def activated(cache: Cache) -> Activated:
    """Weights that decoding with this cache has read so far, and skipped."""
    steps = sparse_steps(cache)
    return Activated() if steps is None else steps.activated


def footprint(cache: Cache) -> Footprint:
    """Bytes the served layers hold, by tier."""
    return reduce(lambda total, layer: total + layer.footprint, served_layers(cache), Footprint())
