"""Decode steps of a model as one CUDA graph, which the host launches at once instead of kernel by kernel.

Where there is no GPU the same steps of fixed size are run as they are.

Legend: B batch, T tokens of the prompt, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from keyhole.cache.captured import CapturedLayer, release
from keyhole.cache.position import DecodePosition
from keyhole.core.errors import UnsupportedCacheError
from keyhole.core.masks import left_padding
from keyhole.engines.transformers.cache import KeyholeLayer
from keyhole.engines.transformers.calls import ServedCache
from keyhole.engines.transformers.compat import cache_argument, given_cache

_WARM_UPS = 2  # runs before the capture, in which libraries take their workspaces and kernels are compiled


class CapturedSteps:
    """Decode steps of a cache: called with the newest tokens `[B, 1]`, logits `[B, V]` come back.

    The logits are overwritten by the next step.
    """

    def __init__(
        self, model: PreTrainedModel, cache: Cache, position: DecodePosition, layers: list[CapturedLayer]
    ) -> None:
        self.model, self.cache, self.position, self.layers = model, cache, position, layers
        self.done = 0
        self._tokens = torch.zeros(len(position.padding), 1, dtype=torch.long, device=position.slot.device)
        known = inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {cache_argument(model): cache}
        if "logits_to_keep" in known:
            self._options["logits_to_keep"] = 1
        self._logits = torch.empty(0)
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """The next step.

        Raises:
            ValueError: there is no room for another token.
        """
        if self.position.length + self.done == self.position.room:
            raise ValueError(f"all {self.done} reserved new tokens were generated; reserve more")
        self._tokens.copy_(tokens)
        if self._graph is None and self._tokens.device.type == "cuda":
            self._capture()
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()
        self.done += 1
        return self._logits

    def _run(self) -> None:
        out = self.model(
            input_ids=self._tokens,
            position_ids=self.position.positions,
            use_cache=True,
            **self._options,
        )
        self._logits = out.logits[:, -1]
        self.position.advance()

    def _capture(self) -> None:
        """Record a step. What runs before are steps, too, which are taken back."""
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self._run()
                self.rewind()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        self._graph = graph

    def rewind(self) -> None:
        """Take all steps back, as if none had been taken."""
        self.done = 0
        self.position.rewind()
        for layer in self.layers:
            layer.rewind()


@contextmanager
def captured(
    model: PreTrainedModel, cache: Cache, *, new_tokens: int, attention_mask: Tensor | None = None
) -> Iterator[CapturedSteps]:
    """Decode `new_tokens` at most, all inside the block, by steps of fixed size.

    The cache is Keyhole's and holds the prompt; behind the block it holds the new tokens, too.

    Args:
        attention_mask: `[B, T]` of the prompt, for batches padded on the left.

    Raises:
        UnsupportedCacheError: a layer of the cache is not Keyhole's, so its size follows from what it holds.
        ValueError: the method has no steps of fixed size.
        NonFiniteError: at the end of the block, NaN or infinity among new keys or values.
    """
    held = [layer for layer in cache.layers if isinstance(layer, KeyholeLayer)]
    if len(held) < len(cache.layers) or not held or not cache.get_seq_length():
        raise UnsupportedCacheError(
            "captured steps need a KeyholeCache that holds a prompt, and a model all of whose layers have "
            "full attention; decode without capturing"
        )
    length, device = cache.get_seq_length(), held[0].inner.newest.device
    position = DecodePosition(length, length + new_tokens, _padding(attention_mask, held[0]), device)
    inners, layers = [layer.inner for layer in held], list[CapturedLayer]()
    steps = CapturedSteps(model, cache, position, layers)
    try:
        for layer in held:
            layers.append(CapturedLayer(layer.inner, position))
            layer.inner = layers[-1]  # type: ignore[assignment]
        yield steps
    finally:
        for layer, inner in zip(held, inners, strict=True):
            layer.inner, layer.unfinished = inner, False
        if isinstance(cache, ServedCache):
            cache.end_call()  # also after an error: steps that did not end are taken back
        release(layers, position, steps.done)


def _padding(mask: Tensor | None, layer: KeyholeLayer) -> tuple[int, ...]:
    batch = layer.inner.newest.shape[0]
    return (0,) * batch if mask is None else left_padding(mask.bool()[:, None, None], batch)


@torch.no_grad()
def cuda_graph_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    streamer: Any = None,
    **inputs: Any,
) -> Tensor:
    """For `model.generate(..., custom_generate=keyhole.cuda_graph_generate)` inside an `attach` block.

    Greedy decoding and sampling, of a prompt `[B, T]` that is computed first.

    Raises:
        ValueError: beams, outputs other than tokens, or no cache are asked for.
    """
    _check_plain(generation_config)
    # By name here, for transformers would pass what the signature names twice.
    mask, cache = inputs.get("attention_mask"), given_cache(inputs)
    if cache is None:
        raise ValueError("cuda_graph_generate decodes with a cache; leave out use_cache=False")
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        **{cache_argument(model): cache},
    ).logits[:, -1]
    new_tokens = int(generation_config.max_length or 0) - input_ids.shape[1]
    going = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    filling = generation_config.pad_token_id or 0
    with captured(model, cache, new_tokens=new_tokens, attention_mask=mask) as step:
        while True:
            scores = logits_processor(input_ids, logits.float())  # type: ignore[arg-type]
            tokens = _pick(scores, bool(generation_config.do_sample)).where(going, filling)
            input_ids = torch.cat([input_ids, tokens.unsqueeze(1)], dim=1)
            if streamer is not None:
                streamer.put(tokens.cpu())
            going = going & ~stopping_criteria(input_ids, scores)  # type: ignore
            if not going.any():
                break
            logits = step(tokens.unsqueeze(1))
    if streamer is not None:
        streamer.end()
    return input_ids


captured_generate = cuda_graph_generate  # its name in version 0.1


def _check_plain(asked: GenerationConfig) -> None:
    if (asked.num_beams or 1) > 1 or asked.return_dict_in_generate:
        raise ValueError(
            "cuda_graph_generate decodes greedily or samples, and gives tokens; "
            "leave out num_beams and return_dict_in_generate, or custom_generate"
        )


def _pick(scores: Tensor, sample: bool) -> Tensor:
    return torch.multinomial(scores.softmax(-1), 1).squeeze(1) if sample else scores.argmax(-1)
