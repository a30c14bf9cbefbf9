"""Modules that skip weights in decode steps, put into a model and taken out again.

Which steps do is the cache's to say: a hook of the model's call looks at it. Everything else, prompts among
it, goes to the modules that were there before, which keep their weights.

A projection whose inputs are skipped needs its weight transposed in memory, so it is written anew in that
order, one at a time, with the same shape and numbers: there is no second copy.

Legend: B batch, T tokens, N numbers of an input, K experts of a token.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from keyhole.core.autograd import outside_inference_mode
from keyhole.engines.transformers.phase import is_generated
from keyhole.engines.transformers.sparse_ffn.sites import (
    decoder_of,
    expert,
    gated,
    gated_sites,
    input_sites,
    is_experts,
    projection,
    routed,
    unit_name,
)
from keyhole.engines.transformers.sparse_ffn.weights import channel_weights, streamed_weights
from keyhole.feedforward import FeedForward, Steps, cut, is_slow, project_sparse, sparse_gated
from keyhole.kernels import matvec_skips

# The decode step that is being computed; each thread has its own.
_step: ContextVar[Steps | None] = ContextVar("step", default=None)


class _Skipping(nn.Module):
    """Stands for a module, has its parts under the same names, and asks it where nothing is to be skipped."""

    def __init__(self, dense: nn.Module, name: str) -> None:
        super().__init__()
        for part, module in dense.named_children():
            self.add_module(part, module)
        for part, parameter in dense._parameters.items():
            self.register_parameter(part, parameter)
        self._name, self._weights = name, channel_weights(dense)
        self._dense = (dense,)  # no part of this one, as its parts are already

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "_dense":
                raise
            return getattr(self._dense[0], name)

    @property
    def stands_for(self) -> nn.Module:
        """The module that was there before."""
        return self._dense[0]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        step = _step.get()
        if step is None or not step.covers(self._name):
            return self._compute(x, *args, **kwargs)
        return self._skip(step, x, *args, **kwargs)

    def _compute(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._dense[0](x, *args, **kwargs)

    def _skip(self, step: Steps, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError


class _SkippingLinear(_Skipping):
    """Stands for the output projection of a feed-forward, too: its weight lies in another order."""

    def _compute(self, x: Tensor) -> Tensor:
        if not is_slow(self.weight):
            return super()._compute(x)
        return project_sparse(projection(self), x.flatten(0, -2)).unflatten(0, x.shape[:-1])

    def _skip(self, step: Steps, x: Tensor) -> Tensor:
        flat = cut(x.flatten(0, -2), step.threshold(self._name, x.device))
        step.record(flat != 0, self._weights)
        return project_sparse(projection(self), flat).unflatten(0, x.shape[:-1])


class _SkippingGated(_Skipping):
    def _skip(self, step: Steps, x: Tensor) -> Tensor:
        threshold = step.threshold(self._name, x.device)
        out, kept = sparse_gated(gated(self), x.flatten(0, -2), threshold, step.first)
        step.record(kept, self._weights)
        return out.unflatten(0, x.shape[:-1])


class _SkippingExperts(_Skipping):
    """Computes each token's experts one by one: no two tokens need the same channels."""

    def _skip(self, step: Steps, x: Tensor, indexes: Tensor, scores: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for token, index, score in routed(indexes, scores):
            threshold = step.threshold(unit_name(self._name, index), x.device)
            one = expert(self, index)
            found, kept = sparse_gated(one, x[token : token + 1], threshold, step.first)
            out[token] += (found[0] * score).to(out.dtype)
            step.record(kept, self._weights / len(x))
        return out


class SkippingModules:
    """What was put into one model: modules for thresholds, weights in another order, and a hook."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._dense: dict[str, nn.Module] = {}
        self._reordered: dict[int, Tensor] = {}
        self._handles = _hooks(model)

    def put(self, feedforward: FeedForward) -> None:
        """Put in what these thresholds need and is not there yet."""
        if not feedforward.thresholds:
            return
        for name, site in {**gated_sites(self._model), **input_sites(self._model)}.items():
            if feedforward.covers(name) and name not in self._dense:
                if not isinstance(site, nn.Linear) and not is_experts(site):
                    self._put(f"{name}.down_proj", site.down_proj)
                self._put(name, site)

    def _put(self, name: str, site: Any) -> None:
        self._dense[name] = site
        _replace(self._model, name, _skipping(site, name))
        if is_experts(site):
            self._reorder(site.down_proj, with_bfloat16=False)
        elif isinstance(site, nn.Linear):
            self._reorder(site.weight)

    def remove(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        for name, dense in reversed(self._dense.items()):
            _replace(self._model, name, dense)
        for weight in self._reordered.values():
            _write(weight, weight.detach().contiguous())

    def _reorder(self, weight: Tensor, *, with_bfloat16: bool = True) -> None:
        """Write a weight transposed, where that gains anything."""
        if not weight.is_contiguous() or not matvec_skips(weight.flatten(0, -2)):
            return
        transposed = weight.detach().transpose(-1, -2).contiguous().transpose(-1, -2)
        if with_bfloat16 or not is_slow(transposed):
            _write(weight, transposed)
            self._reordered[id(weight)] = weight


def sparse_steps(cache: Any) -> Steps | None:
    """How the decode steps of a cache skip weights, None if they do not."""
    found = (getattr(layer, "steps", None) for layer in getattr(cache, "layers", ()))
    return next((steps for steps in found if isinstance(steps, Steps)), None)


def _skipping(site: nn.Module, name: str) -> nn.Module:
    if isinstance(site, nn.Linear):
        return _SkippingLinear(site, name)
    return (_SkippingExperts if is_experts(site) else _SkippingGated)(site, name)


def _replace(model: PreTrainedModel, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(decoder_of(model).get_submodule(parent), child, module)


@outside_inference_mode()
def _write(weight: Tensor, data: Tensor) -> None:
    weight.data = data


def _hooks(model: PreTrainedModel) -> list[RemovableHandle]:
    parameters = list(inspect.signature(model.forward).parameters)
    begin = partial(_begin, parameters, streamed_weights(model))
    return [
        model.register_forward_pre_hook(begin, with_kwargs=True),
        model.register_forward_hook(_end, always_call=True),
    ]


def _begin(
    parameters: list[str], weights: int, _model: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> None:
    """A forward pre-hook: whether the call is a decode step whose cache wants weights skipped."""
    given = dict(zip(parameters, args, strict=False)) | kwargs
    tokens = next(
        (given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None), None
    )
    cache = given.get("past_key_values")
    single = tokens is not None and tokens.shape[1] == 1 and is_generated(cache, 1)
    step = sparse_steps(cache) if single else None
    if step is not None and tokens is not None:
        step.begin(weights, tokens.device)
    _step.set(step)


def _end(*_call: object) -> None:
    _step.set(None)
