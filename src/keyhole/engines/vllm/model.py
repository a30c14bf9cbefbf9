"""What methods know of a model that vLLM runs."""

from __future__ import annotations

import json
from functools import lru_cache, partial
from typing import Any, NoReturn, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from keyhole.core.break_even import ALWAYS, BreakEven
from keyhole.core.costs import Heads
from keyhole.core.errors import UnsupportedModelError
from keyhole.core.model_info import ModelInfo
from keyhole.core.rope import Rope
from keyhole.engines.transformers.fingerprint import fingerprint
from keyhole.engines.transformers.rope import layer_rope
from keyhole.engines.transformers.sizes import attention_sizes
from keyhole.engines.vllm.impl import ServingImpl
from keyhole.methods.pays import break_evens
from keyhole.methods.recipe import Recipe

_SMALL = 64  # tokens, and channels of feed-forward layers, of a model that is made for its rotations


def layers_of(config: Any) -> dict[str, Any]:
    """The implementations of the layers that Keyhole serves, by name, in the order of the model."""
    held = config.compilation_config.static_forward_context
    served = {name: layer.impl for name, layer in held.items() if isinstance(_impl(layer), ServingImpl)}
    return dict(sorted(served.items(), key=lambda item: place_of(item[0])))


def _impl(layer: Any) -> Any:
    return getattr(layer, "impl", None)


def place_of(name: str) -> int:
    """The place in the model of the layer of a name such as `model.layers.3.self_attn.attn`."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def model_info(config: Any, recipe: Recipe, names: list[str]) -> ModelInfo:
    """What methods know of the served layers, by their names. All that is asked of weights is refused."""
    model, device = config.model_config, torch.device(config.device_config.device)
    return ModelInfo(
        tuple(map(place_of, names)),
        _break_even(recipe, model, device),
        partial(_rope, model.hf_text_config),
        partial(_fingerprint, config),
        None,
        _no_projections,
        device,
        getattr(model.hf_text_config, "max_position_embeddings", None),
    )


def _break_even(recipe: Recipe, model: Any, device: torch.device) -> BreakEven:
    """Lengths by the heads of the whole model, so that they do not depend on how many workers share them."""
    sizes = attention_sizes(model.hf_text_config)
    asked = recipe.retrieval is not None and recipe.retrieval.dense_below == "auto"
    if not asked or sizes is None:
        return ALWAYS
    return break_evens(recipe, Heads(*sizes, sizes.head_dim, model.dtype), device)


def _no_projections(_place: int) -> NoReturn:
    raise UnsupportedModelError(
        "vLLM does not show attention the weights of its projections, which the method works with; take a "
        "method that needs keys, values and queries only, or serve it by transformers"
    )


def _rope(config: Any, place: int) -> Rope:
    return layer_rope(_twin(type(config), config.to_json_string()), place)


@lru_cache(maxsize=2)
def _twin(kind: type[Any], described: str) -> PreTrainedModel:
    """A model of the same rotations, of one head and random weights."""
    small = json.loads(described)
    sizes = attention_sizes(kind(**small))
    assert sizes is not None
    small |= {
        "hidden_size": sizes.head_dim,
        "head_dim": sizes.head_dim,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "intermediate_size": _SMALL,
        "vocab_size": _SMALL,
        "pad_token_id": None,
        "dtype": "float32",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cast(PreTrainedModel, AutoModelForCausalLM.from_config(kind(**small))).eval()


def _fingerprint(config: Any) -> str:
    """What files that are fitted to a model name it by. Its weights are loaded for that, on the CPU.

    Raises:
        UnsupportedModelError: heads are shared out to several workers, and the files are of all of them.
    """
    if config.parallel_config.tensor_parallel_size > 1:
        raise UnsupportedModelError(
            "files fitted to a model are of all its heads, and a worker has some of them; give "
            "--tensor-parallel-size 1"
        )
    return _fingerprint_of(config.model_config.model, config.model_config.dtype)


@lru_cache(maxsize=1)
def _fingerprint_of(path: str, dtype: torch.dtype) -> str:
    return fingerprint(AutoModelForCausalLM.from_pretrained(path, dtype=dtype))
