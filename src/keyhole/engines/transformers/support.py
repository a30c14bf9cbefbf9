"""Whether a model can be served, found out before any work is done."""

from __future__ import annotations

import warnings

import torch
from transformers import DynamicCache, PreTrainedModel

from keyhole.core.errors import NonFiniteError, UnsupportedModelError
from keyhole.engines.transformers.cache import adopt, can_serve_layers, served_layers
from keyhole.engines.transformers.compat import cache_argument, leaves_caches_out
from keyhole.engines.transformers.devices import check_has_weights, input_device
from keyhole.engines.transformers.model import adapter_of
from keyhole.engines.transformers.registration import NAME, switched, text_config
from keyhole.methods.base import Method
from keyhole.methods.recipe import Recipe

_PROBE = (2, 1)  # tokens of a prompt, then of a decode step


def check_supported(model: PreTrainedModel) -> None:
    """Raise unless Keyhole can serve the model; the answer is kept as long as the model lives.

    The last test runs three tokens through the model: what its code does between cache and attention shows
    only there. The model is left as it was.

    Raises:
        UnsupportedModelError: with the reason.
        NonFiniteError: the model's keys or values hold NaN or infinity.
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"a {type(model).__name__} is not a transformers model; give the PreTrainedModel itself, "
            "without compiling or wrapping it (adapters have get_base_model())"
        )
    _check_mode(model)
    adapter = adapter_of(model)
    if adapter.supported:
        return
    _check_architecture(model)
    check_has_weights(model)
    if can_serve_layers(model) and not adapter.probed:
        with switched(model):
            _probe(model)
    adapter.supported = True


def passed_before(model: PreTrainedModel) -> None:
    """Say that a model of the same files passed `check_supported`, by the same code: it is not run for that.

    The run reads all weights of a model that was just loaded.
    """
    adapter_of(model).probed = True


def checked_recipe(model: PreTrainedModel, method: str | Method | Recipe | None) -> Recipe | None:
    """The recipe of a method, if one is given, after the checks that a model can be served.

    Warns where nothing of the model is served.

    Raises:
        SpecError: the method cannot be read.
        UnsupportedModelError: the model cannot be served, with the reason.
    """
    recipe = None if method is None else Recipe.parse(method)
    check_supported(model)
    if not can_serve_layers(model):
        name = type(model).__name__
        warnings.warn(
            f"no layer of this {name} attends to the whole sequence; {recipe or 'Keyhole'} changes nothing",
            stacklevel=4,
        )
    return recipe


def _check_mode(model: PreTrainedModel) -> None:
    if leaves_caches_out(model):
        raise UnsupportedModelError(
            f"this {type(model).__name__} is in training mode with gradient checkpointing, which disables "
            "caches; call model.eval(), or train without attaching"
        )


def _check_architecture(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} is an encoder-decoder; Keyhole serves decoder-only models")
    rank = getattr(text_config(model), "kv_lora_rank", None)
    if rank:
        raise UnsupportedModelError(
            f"{name} uses multi-head latent attention (kv_lora_rank={rank}): it expands keys "
            "and values after the cache, which Keyhole does not support"
        )


def _probe(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if text_config(model)._attn_implementation != NAME:
        raise UnsupportedModelError(
            f"{name} does not call its attention through transformers' AttentionInterface"
        )
    cache = DynamicCache(config=model.config)
    adopt(cache, Recipe.parse("dense"), model)
    for tokens in _PROBE:
        _run(model, cache, tokens)
    if any(layer.length != sum(_PROBE) for layer in served_layers(cache)):
        raise UnsupportedModelError(f"{name} does not store all its layers' keys in the cache it is given")


def _run(model: PreTrainedModel, cache: DynamicCache, tokens: int) -> None:
    ids = torch.zeros(1, tokens, dtype=torch.long, device=input_device(model))
    try:
        with torch.no_grad():
            model(input_ids=ids, **{cache_argument(model): cache}, use_cache=True)
    except (UnsupportedModelError, NonFiniteError):
        raise
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot run on token ids and a cache alone: {error}"
        ) from error
