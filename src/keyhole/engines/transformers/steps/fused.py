"""Decode steps of one model by native code, as far as its modules allow that.

Legend: B rows, E hidden size.
"""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from keyhole.engines.transformers.cache import KeyholeLayer
from keyhole.engines.transformers.calls import ServedCache
from keyhole.engines.transformers.compat import CACHE, given_cache
from keyhole.engines.transformers.model import adapter_of
from keyhole.engines.transformers.steps.check import differs
from keyhole.engines.transformers.steps.families import Understood, understand
from keyhole.engines.transformers.steps.linears import LinearOf, NotUnderstoodError
from keyhole.engines.transformers.steps.masks import OwnMaskError, step_mask
from keyhole.engines.transformers.steps.watch import Watch
from keyhole.engines.transformers.steps.whole import CacheSteps, cache_steps, takes_whole_steps
from keyhole.kernels.decoder.api import decoder_is_native, decoder_step
from keyhole.kernels.decoder.types import MOST_ROWS, DecoderSizes, DecoderStep
from keyhole.kernels.products.multiply import multiply

_LOG = logging.getLogger(__name__)
_KNOWN = (
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "use_cache",
    "cache",
    "past_key_values",
)
_FLAGS = ("output_attentions", "output_hidden_states", "is_causal")


class _Plan(NamedTuple):
    understood: Understood
    watch: Watch


class _Thread(threading.local):
    """What a thread's steps use again; of a plan, which it keeps."""

    plan: _Plan | None = None
    step: DecoderStep | None = None
    hidden: Tensor | None = None  # what the latest step returned

    def __init__(self) -> None:
        self.whole: weakref.WeakKeyDictionary[Any, CacheSteps] = weakref.WeakKeyDictionary()


class FusedSteps:
    """The steps of a model that its cache's layers attend for, all of them.

    Whatever else is asked of the model is not answered. Attention is computed by the layers of the cache.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.decoder: Any = model.get_decoder()
        self._plan: _Plan | None = None
        self._head: tuple[nn.Module, LinearOf] | None = None
        self._checked = self._given_up = False
        self._thread = _Thread()

    def step(self, given: dict[str, Any]) -> BaseModelOutputWithPast | None:
        """The answer to a call of the decoder; None where its own modules have to give it."""
        cache: Any = given_cache(given)
        tokens = _tokens(given)
        if tokens is None or not _is_step(tokens, cache) or not self._answers(given):
            return None
        try:
            mask = step_mask(given.get("attention_mask"), cache.get_seq_length() + 1)
        except OwnMaskError:
            return None
        plan = self._current()
        if plan is None:
            return None
        embeddings = self.decoder.embed_tokens(tokens) if tokens.dim() == 2 else tokens
        if not _fits(embeddings, plan.understood.decoder.sizes):
            return None
        return self._run(plan, embeddings, cache, given.get("position_ids"), mask)

    def project(self, head: nn.Linear, x: Tensor) -> Tensor | None:
        """Logits of what a step has returned to this thread; None for anything else."""
        hidden = self._thread.hidden
        if hidden is None or x.data_ptr() != hidden.data_ptr() or x.numel() != hidden.numel():
            return None
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in head.parameters()):
            return None
        try:
            if self._head is None or self._head[0] is not head:
                self._head = head, LinearOf(head)
            matrix = self._head[1]()
        except NotUnderstoodError:
            return None
        out = multiply([matrix.matrix], hidden)[0]
        out = out if matrix.bias is None else out + matrix.bias
        return out.view(*x.shape[:-1], -1)

    def _answers(self, given: dict[str, Any]) -> bool:
        """Whether a call asks for nothing but hidden states of a decoder that does not learn."""
        config = self.decoder.config
        return (
            not torch.compiler.is_compiling()
            and not self.decoder.training
            and all(name in _KNOWN for name, value in given.items() if value is not None)
            and not any(getattr(config, flag, None) for flag in _FLAGS)
            and getattr(config, "return_dict", True)
        )

    def _current(self) -> _Plan | None:
        """The plan for the modules as they are, unless they have to be called."""
        if self._given_up:
            return None
        try:
            if self._plan is None or not self._plan.watch.unchanged():
                self._plan, self._checked = self._make(), False
            obstacle = self._plan.watch.obstacle()
            if obstacle is None and torch.is_grad_enabled() and self._plan.watch.learns:
                obstacle = "gradients are recorded; call the model under torch.no_grad()"
            if obstacle is not None:
                return self._explain(obstacle)
            self._check(self._plan)
        except NotUnderstoodError as reason:
            self._given_up = True
            return self._explain(str(reason))
        return self._plan

    def _make(self) -> _Plan:
        understood = understand(self.model)
        if not decoder_is_native(understood.decoder):
            raise NotUnderstoodError("there is no native code for it")
        return _Plan(understood, Watch(self.decoder))

    def _check(self, plan: _Plan) -> None:
        """Compare a plan with what the modules compute, when it is first used."""
        if self._checked:
            return
        found = adapter_of(self.model).memo(
            ("steps", plan.watch.stamp), lambda: differs(self.model, plan.understood)
        )
        if found is not None:
            raise NotUnderstoodError(found)
        self._checked = True

    def _explain(self, reason: str) -> None:
        """Say why steps are left to the model's own modules, once."""
        kind = type(self.model).__name__

        def say() -> bool:
            _LOG.info("decode steps of this %s are computed by its own modules: %s", kind, reason)
            return True

        adapter_of(self.model).memo(("steps are own", reason), say)

    @torch.no_grad()
    def _run(
        self, plan: _Plan, embeddings: Tensor, cache: Any, positions: Tensor | None, mask: Tensor | None
    ) -> BaseModelOutputWithPast:
        decoder, mine = self.decoder, self._thread
        sizes = plan.understood.decoder.sizes
        if positions is None:
            positions = torch.tensor([[cache.get_seq_length()]])
        cos, sin = decoder.rotary_emb(_NOTHING, positions)
        if mine.plan is not plan or mine.step is None:
            mine.plan, mine.step = plan, decoder_step(plan.understood.decoder)
            mine.whole.clear()
        step, layers = mine.step, cache.layers
        given = embeddings.squeeze(1), cos.squeeze(1), sin.squeeze(1)
        if mask is None and takes_whole_steps(cache):
            found = self._whole(plan, step, cache, *given)
            if found is not None:
                mine.hidden = found
                return BaseModelOutputWithPast(last_hidden_state=found.unsqueeze(1), **{CACHE: cache})
        heads = step.begin(*given)
        counts = [sizes.heads, sizes.kv_heads, sizes.kv_heads]
        for layer, (place, logits) in enumerate(plan.understood.attention):
            query, keys, values = heads.split(counts, dim=1)
            cache.update(keys, values, place)
            heads = step.attended(layer, layers[place].attend(query, logits, mask=mask).to(sizes.dtype))
        mine.hidden = heads
        return BaseModelOutputWithPast(last_hidden_state=heads.unsqueeze(1), **{CACHE: cache})

    def _whole(self, plan: _Plan, step: Any, cache: Any, *given: Tensor) -> Tensor | None:
        """A step by one native call; None where the layers of the cache have to attend one by one."""
        known = self._thread.whole
        steps = known.get(cache)
        found = None if steps is None else steps.run(cache, *given)
        if found is None:
            # As the layers are now: memory has moved, or another way of reading pays.
            steps = cache_steps(cache, plan.understood, step)
            known.pop(cache, None)
            if steps is not None:
                known[cache] = steps
                found = steps.run(cache, *given)
        return found


_NOTHING = torch.empty(0)


def _tokens(given: dict[str, Any]) -> Tensor | None:
    """Ids `[B, 1]` or embeddings `[B, 1, E]` of one token for each row; None for anything else."""
    ids, embeddings, positions = map(given.get, ("input_ids", "inputs_embeds", "position_ids"))
    if (ids is None) == (embeddings is None):
        return None
    tokens: Any = embeddings if ids is None else ids
    dimensions = 3 if ids is None else 2
    if tokens.dim() != dimensions or tokens.shape[1] != 1:
        return None
    if positions is not None and tuple(positions.shape) not in ((1, 1), (len(tokens), 1)):
        return None
    return tokens


def _is_step(tokens: Tensor, cache: Any) -> bool:
    """Whether there are few rows, whose attention the layers of a cache of ours compute."""
    if len(tokens) > MOST_ROWS or not isinstance(cache, ServedCache):
        return False
    return all([type(layer) is KeyholeLayer and layer.steps is None for layer in cache.layers])


def _fits(embeddings: Tensor, sizes: DecoderSizes) -> bool:
    """Whether native code can read embeddings, which are not to get gradients."""
    learns = torch.is_grad_enabled() and embeddings.requires_grad
    return embeddings.dtype == sizes.dtype and embeddings.shape[-1] == sizes.hidden and not learns
