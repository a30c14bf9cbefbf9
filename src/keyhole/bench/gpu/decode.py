"""One layer's decode step on a GPU, selection included, against flash attention over the whole cache.

Legend: B batch, H query heads, Hkv KV heads, N tokens, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.attention import Logits
from keyhole.bench.case import Case
from keyhole.bench.checks import check_close, check_selective_step
from keyhole.bench.dense import dense_baselines
from keyhole.bench.gpu.flex import flex_baseline
from keyhole.bench.gpu.graphs import graphed
from keyhole.bench.layers import NewToken, filled_layer, layer_sizes, new_token, step_usage
from keyhole.bench.result import Result, compare
from keyhole.cache.captured import CapturedLayer
from keyhole.cache.layer import LayerCache
from keyhole.cache.position import DecodePosition
from keyhole.tuning.machine import implementation
from keyhole.tuning.timing import CacheFlusher, Candidate, clock


@torch.no_grad()
def decode(case: Case, method: str, *, rounds: int, flusher: CacheFlusher) -> list[Result]:
    """Time appending a token and attending to what the method selects, as one graph.

    The baselines attend only, also as graphs: folded, which is flash attention where torch has it for the
    dtype, and torch's FlexAttention, where it can be compiled.

    Raises:
        ValueError: the method has no steps of fixed size, or the case does not fit into memory.
        CheckFailedError: the step is not exact over what it reads, or the graph gives something else.
    """
    device = torch.device(case.device)
    recipe = case.recipe(method)
    source = case.source()
    layer = filled_layer(case, recipe, source)
    built = clock(layer.prepare, device)
    token = new_token(case, source)
    expected, moved, read = _ordinary(layer, token, case.logits)
    step = _Captured(layer, case, token)
    moved *= case.batch
    ours = graphed(Candidate(str(recipe), implementation(device), step.run, moved, read), device)
    ours.run()
    check_close("a captured step", step.out, expected, case.torch_dtype)
    held = layer.storage.keys(), layer.storage.values()
    keys, values = (part[:, :, : case.tokens] for part in held)  # without room for the new token
    baselines = dense_baselines(token.query, keys, values, scale=case.logits.scale)[:1]
    baselines += flex_baseline(token.query, keys, values, case.logits.scale)
    baselines = [graphed(baseline, device) for baseline in baselines]
    notes = [f"building the index once took {built * 1e3:.1f} ms, not counted"]
    return [
        compare("decode", layer_sizes(case), [ours], baselines, rounds=rounds, flusher=flusher, notes=notes)
    ]


class _Captured:
    """A step of fixed size: the token is written to the same place each time."""

    def __init__(self, layer: LayerCache, case: Case, token: NewToken) -> None:
        length = layer.length
        ticking = DecodePosition(length, length + 1, (0,) * case.batch, torch.device(case.device))
        self.position, self.layer = ticking, CapturedLayer(layer, ticking)
        self.token, self.logits = token, case.logits
        self.out = torch.empty(0)

    def run(self) -> None:
        self.layer.append(self.token.key, self.token.value)
        self.out = self.layer.attend(self.token.query, self.logits)
        # The next graph, or run, computes the regions again.
        self.position.forget()


def _ordinary(layer: LayerCache, token: NewToken, logits: Logits) -> tuple[Tensor, float, int]:
    """What an ordinary step gives, checked; bytes that it moves, and the tokens it reads by choice."""
    tokens = layer.length
    layer.append(token.key, token.value)
    check_selective_step(layer, token.query, logits)
    found: list[Tensor] = []
    moved, read = step_usage(layer, lambda: found.append(layer.attend(token.query, logits)))
    layer.crop(tokens)
    return found[0], moved, read
