"""Modules of a model that skip weights in decode steps.

Which steps do is the cache's to say: a hook of the model's call looks at it. A module stays what it is and
gets another `forward`, so that hooks on it are called as ever, also those that come later. Everything but
such steps, prompts among it, goes to the forward of its class; so does a feed-forward one of whose inner
modules has hooks, an adapter or a parametrization, for these would be passed over.

A projection whose inputs are skipped needs its weight transposed in memory, so it is copied in that
order, one at a time, with the same shape and numbers: there is no second copy.

Legend: B batch, T tokens, N numbers of an input, K experts of a token.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from functools import partial
from types import MethodType
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from keyhole.core.autograd import outside_inference_mode
from keyhole.engines.transformers.compat import given_cache
from keyhole.engines.transformers.phase import is_generated
from keyhole.engines.transformers.sparse_ffn.obstacles import (
    Substitute,
    check_in_memory,
    gated_obstacle,
    hooked_inside,
    is_experts,
    linear_obstacle,
)
from keyhole.engines.transformers.sparse_ffn.sites import (
    expert,
    gated,
    gated_sites,
    input_sites,
    is_input,
    projection,
    routed,
    unit_name,
)
from keyhole.engines.transformers.sparse_ffn.weights import channel_weights, streamed_weights
from keyhole.feedforward import FeedForward, Steps, cut, is_slow, project_sparse, sparse_gated
from keyhole.kernels import matvec_skips

# The calls of models that go on in a thread or task, each with the decode step that it is, or None.
_calls: ContextVar[tuple[tuple[int, Steps | None], ...]] = ContextVar("keyhole_sparse_calls", default=())


def _step() -> Steps | None:
    calls = _calls.get()
    return calls[-1][1] if calls else None


class _Skipping(Substitute):
    """The `forward` of one module."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module: Any = module
        self.name = name
        self._weights = channel_weights(module)
        self._dense = type(module).forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        step = _step()
        if step is None or not step.covers(self.name) or not self._plain():
            return self._compute(x, *args, **kwargs)
        return self._skip(step, x, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module computes densely."""
        return MethodType(self._dense, memo.get(id(self.module), self.module))

    def _plain(self) -> bool:
        """Whether the weights still are what the module computes."""
        raise NotImplementedError

    def _compute(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return type(self.module).forward(self.module, x, *args, **kwargs)

    def _skip(self, step: Steps, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError


class _SkippingLinear(_Skipping):
    """Of the output projection of a feed-forward, too: its weight is stored in another order."""

    def _plain(self) -> bool:
        return linear_obstacle(self.module) is None and self._dense is nn.Linear.forward

    def _compute(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self._plain() or not is_slow(self.module.weight):
            return super()._compute(x, *args, **kwargs)
        return project_sparse(projection(self.module), x.flatten(0, -2)).unflatten(0, x.shape[:-1])

    def _skip(self, step: Steps, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        flat = cut(x.flatten(0, -2), step.threshold(self.name, x.device))
        step.record(flat != 0, self._weights)
        return project_sparse(projection(self.module), flat).unflatten(0, x.shape[:-1])


class _SkippingGated(_Skipping):
    def _plain(self) -> bool:
        module = self.module
        same = type(module).forward is self._dense and gated_obstacle(module) is None
        return same and not hooked_inside(module)

    def _skip(self, step: Steps, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        threshold = step.threshold(self.name, x.device)
        out, kept = sparse_gated(gated(self.module), x.flatten(0, -2), threshold, step.first)
        step.record(kept, self._weights)
        return out.unflatten(0, x.shape[:-1])


class _SkippingExperts(_SkippingGated):
    """Computes each token's experts one by one: no two tokens need the same channels."""

    def _skip(self, step: Steps, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._routed(step, x, *args, **kwargs)

    def _routed(self, step: Steps, x: Tensor, indexes: Tensor, scores: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for token, index, score in routed(indexes, scores):
            threshold = step.threshold(unit_name(self.name, index), x.device)
            one = expert(self.module, index)
            found, kept = sparse_gated(one, x[token : token + 1], threshold, step.first)
            out[token] += (found[0] * score).to(out.dtype)
            step.record(kept, self._weights / len(x))
        return out


class SkippingModules:
    """What was done to one model: another `forward` of modules, weights in another order, and hooks.

    It holds no reference to the model or its weights.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = ref(model)
        self._sites: dict[str, ref[nn.Module]] = {}
        self._reordered: list[ref[Tensor]] = []
        self._handles = _hooks(model)

    def put(self, feedforward: FeedForward) -> None:
        """Put in what these thresholds need and is not there yet.

        Raises:
            UnsupportedModelError: weights that they are for are not in memory.
        """
        model = self._model()
        if model is None or not feedforward.thresholds:
            return
        for name, site in _sites(model, feedforward).items():
            if name not in self._sites:
                check_in_memory(name, site)
                if not isinstance(site, nn.Linear) and not is_experts(site):
                    self._put(f"{name}.down_proj", cast(Any, site).down_proj)
                self._put(name, site)

    def _put(self, name: str, site: Any) -> None:
        self._sites[name] = ref(site)
        site.forward = _skipping(site, name)
        if is_experts(site):
            self._reorder(site.down_proj, with_bfloat16=False)
        elif isinstance(site, nn.Linear):
            self._reorder(site.weight)

    def remove(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        for reference in self._sites.values():
            site = reference()
            # What a user put in its place stays.
            if site is not None and isinstance(vars(site).get("forward"), _Skipping):
                del site.forward
        for reference in self._reordered:
            weight = reference()
            if weight is not None:
                _write(weight, weight.detach().contiguous())

    def _reorder(self, weight: Tensor, *, with_bfloat16: bool = True) -> None:
        """Write a weight transposed, where that gains anything."""
        if not weight.is_contiguous() or not matvec_skips(weight.flatten(0, -2)):
            return
        transposed = weight.detach().transpose(-1, -2).contiguous().transpose(-1, -2)
        if with_bfloat16 or not is_slow(transposed):
            _write(weight, transposed)
            self._reordered.append(ref(weight))


def sparse_steps(cache: Any) -> Steps | None:
    """How the decode steps of a cache skip weights, None if they do not."""
    found = (getattr(layer, "steps", None) for layer in getattr(cache, "layers", ()))
    return next((steps for steps in found if isinstance(steps, Steps)), None)


def _sites(model: PreTrainedModel, feedforward: FeedForward) -> dict[str, nn.Module]:
    """The modules that thresholds are for."""
    inputs = input_sites(model) if any(map(is_input, feedforward.thresholds)) else {}
    found = {**gated_sites(model), **inputs}
    return {name: site for name, site in found.items() if feedforward.covers(name)}


def _skipping(site: nn.Module, name: str) -> _Skipping:
    if isinstance(site, nn.Linear):
        return _SkippingLinear(site, name)
    return (_SkippingExperts if is_experts(site) else _SkippingGated)(site, name)


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
    parameters: list[str], weights: int, model: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> None:
    """A forward pre-hook: whether the call is a decode step whose cache wants weights skipped."""
    given = dict(zip(parameters, args, strict=False)) | kwargs
    tokens = next(
        (given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None), None
    )
    cache = given_cache(given)
    single = tokens is not None and tokens.shape[1] == 1 and is_generated(cache, 1)
    step = sparse_steps(cache) if single else None
    if step is not None and tokens is not None:
        step.begin(weights, tokens.device)
    _calls.set((*_calls.get(), (id(model), step)))


def _end(model: nn.Module, *_call: object) -> None:
    """A forward hook: the latest call of the model is over, and what it called and never ended."""
    calls = _calls.get()
    last = max((place for place, (owner, _) in enumerate(calls) if owner == id(model)), default=len(calls))
    _calls.set(calls[:last])
