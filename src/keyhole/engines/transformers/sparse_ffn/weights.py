"""How many weights a token reads."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from keyhole.engines.transformers.sparse_ffn.obstacles import is_experts, looks_gated
from keyhole.engines.transformers.sparse_ffn.sites import (
    decoder_of,
    expert,
    gated,
    gated_sites,
    input_sites,
)


def channel_weights(site: nn.Module) -> int:
    """Weights that one number of a projection's input, or one channel of a feed-forward, needs alone."""
    if isinstance(site, nn.Linear):
        return site.out_features
    one = expert(site, 0) if is_experts(site) else gated(site)
    return one.up.weight.shape[1] + one.down.weight.shape[0]


def streamed_weights(model: PreTrainedModel) -> int:
    """Weights of matrices that a token reads: no experts but its own, no embeddings but the output layer."""
    whole: Any = model
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = whole.get_output_embeddings()
    total = sum(
        weight.numel()
        for name, weight in decoder_of(model).named_parameters()
        if weight.dim() > 1 and id(weight) not in embeddings
    )
    total += 0 if head is None else head.weight.numel()
    return total - sum(_idle(model, site) for site in decoder_of(model).modules() if looks_gated(site))


def _idle(model: PreTrainedModel, site: nn.Module) -> int:
    """Weights of experts that a token does not choose."""
    if not is_experts(site):
        return 0
    whole: Any = site
    count = len(whole.down_proj)
    held = whole.gate_up_proj.numel() + whole.down_proj.numel()
    return held // count * (count - _chosen(model, site))


def activated_share(model: PreTrainedModel, sparsity: float, *, attention: bool) -> float:
    """The share of `streamed_weights` that a step reads if it skips so large a share of channels and inputs.

    Raises:
        UnsupportedModelError: the model has no feed-forward that can skip any.
    """
    sites = gated_sites(model).values()
    skippable = sum(channel_weights(site) * _channels(model, site) for site in sites)
    if attention:
        skippable += sum(linear.weight.numel() for linear in input_sites(model).values())
    return 1 - sparsity * skippable / streamed_weights(model)


def _channels(model: PreTrainedModel, site: Any) -> int:
    """Channels that a token needs, in all its experts."""
    if is_experts(site):
        return site.down_proj.shape[-1] * _chosen(model, site)
    return site.down_proj.in_features


def _chosen(model: PreTrainedModel, site: Any) -> int:
    """Experts of a token."""
    config = model.config.get_text_config(decoder=True)
    count = len(site.down_proj)
    return min(count, getattr(config, "num_experts_per_tok", count))
