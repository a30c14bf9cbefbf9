"""What of a vLLM engine Keyhole cannot serve, with the reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyhole.core.errors import UnsupportedModelError

if TYPE_CHECKING:
    from keyhole.methods.recipe import Recipe


def check_engine(config: Any, recipe: Recipe) -> None:
    """Raise unless an engine of this `VllmConfig` can be served by a recipe.

    Raises:
        UnsupportedModelError: it cannot, with the reason and the way out.
    """
    reason = _obstacle(config) or _obstacle_of(recipe)
    if reason:
        raise UnsupportedModelError(f"Keyhole cannot serve this vLLM engine by {recipe}: {reason}")


def _obstacle(config: Any) -> str:
    model, parallel = config.model_config, config.parallel_config
    if model.use_mla:
        return (
            "the model uses multi-head latent attention, whose cache has no keys and values; give another "
            "model"
        )
    if model.is_encoder_decoder:
        return "the model is an encoder-decoder; give a decoder-only one"
    if model.is_mm_prefix_lm:
        return "the model attends to the tokens of an image in both directions; give another model"
    if config.cache_config.cache_dtype not in ("auto", str(model.dtype).removeprefix("torch.")):
        return (
            f"it reads keys and values as the model makes them, not as {config.cache_config.cache_dtype}; "
            "leave out --kv-cache-dtype"
        )
    if config.speculative_config is not None:
        return "drafted tokens are not selected for; leave out --speculative-config"
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size", "pipeline_parallel_size"):
        if getattr(parallel, name) > 1:
            return f"each worker has to hold every token and layer; give --{name.replace('_', '-')} 1"
    if parallel.use_ubatching:
        return "a step is to be one batch; leave out --enable-dbo"
    return ""


def _obstacle_of(recipe: Recipe) -> str:
    from keyhole.methods.recipe import answers  # imports torch
    from keyhole.methods.renumbering import Renumbering

    for stage in recipe.stages:
        if answers(stage, "feedforward"):
            return f"{stage.name} skips weights of modules that are vLLM's own; use transformers for it"
        if isinstance(stage, Renumbering) and (stage.renumber or stage.distance is not None):
            return (
                f"{stage.name} gives tokens other positions than the model did, which is made for prompts "
                "beyond its range; vLLM refuses those"
            )
    return ""


def check_layer(impl: Any, sliding_window: int | None) -> bool:
    """Whether a layer, made by vLLM's own implementation `impl`, is one for Keyhole.

    Layers with a sliding window and encoders are left to vLLM.

    Raises:
        UnsupportedModelError: the layer attends to the whole sequence in a way that cannot be served.
    """
    if sliding_window is not None or impl.attn_type != "decoder":
        return False
    if impl.alibi_slopes is not None:
        raise UnsupportedModelError("the model adds ALiBi biases to its logits; Keyhole cannot serve it")
    if impl.kv_sharing_target_layer_name is not None:
        raise UnsupportedModelError(
            "layers of the model read the keys and values of others; Keyhole cannot serve it in vLLM"
        )
    return True
