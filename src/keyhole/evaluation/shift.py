"""How much attention shifts from one layer to the next: a layer where it does should choose its own pages.

Source: "DELTA: Dynamic Layer-Aware Token Attention for Efficient Long-Context Reasoning", arXiv 2510.09883.

Legend: H query heads, Q queries, N tokens, D head size, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from keyhole.attention import Logits
from keyhole.core.errors import UnsupportedModelError
from keyhole.core.layout import regions
from keyhole.engines.transformers.calibrate.recording import recorded
from keyhole.methods.delta import Delta, LayerSets, default_layers
from keyhole.prefill import DensePrefill
from keyhole.selection.shared import attention_shares
from keyhole.storage import Storage

QUERIES = 32  # newest ones of a text, whose attention is compared


class _Recorder(DensePrefill):
    """Computes densely, and keeps what the newest queries attend to beside sinks and window, `[Q, N]`."""

    def __init__(self) -> None:
        self.seen = torch.empty(0)

    def attend(self, query: Tensor, storage: Storage, logits: Logits, mask: Tensor | None) -> Tensor:
        keys, count = storage.keys(), min(QUERIES, query.shape[2])
        parts = regions(storage.length, (0,), Delta.sinks, Delta.window + count, keys.device)
        competing = slice(int(parts.first), parts.last)
        self.seen = torch.cat(
            [
                # As pages are ranked: the greatest probability that any head gives a token.
                attention_shares(query[:, :, -back], keys[:, :, : storage.length - back + 1], parts, logits)
                .amax(1)[:, competing]
                .cpu()
                for back in range(count, 0, -1)
            ]
        )
        return super().attend(query, storage, logits, mask)


def attention_shift(
    model: PreTrainedModel,
    texts: Sequence[Tensor],
    progress: Callable[[str, float, float | None], None] | None = None,
) -> dict[int, float]:
    """1 - cosine of what a layer and the one before it attend to, a mean over queries and texts.

    Args:
        texts: token ids `[1, T]`.

    Returns:
        The layers that attend to the whole sequence, counted in the model; the first has shift 0.

    Raises:
        ValueError: no text, or one too short to compare on.
        UnsupportedModelError: the model has no two such layers.
    """
    least = Delta.sinks + Delta.window + 2 * QUERIES
    if not texts or min(text.shape[1] for text in texts) < least:
        raise ValueError(f"calibration needs texts of at least {least} tokens; give longer ones")
    total: dict[int, float] = {}
    for done, text in enumerate(texts):
        if progress is not None:
            progress("reading", done, len(texts))
        for layer, shift in _shift(model, text).items():
            total[layer] = total.get(layer, 0.0) + shift / len(texts)
    return total


def _shift(model: PreTrainedModel, text: Tensor) -> dict[int, float]:
    recorders = recorded(model, [text], lambda _: _Recorder())
    if len(recorders) < 2:
        raise UnsupportedModelError(
            f"{type(model).__name__} has {len(recorders)} layers that attend to the whole sequence; "
            "sharing pages needs two"
        )
    found = dict.fromkeys(recorders, 0.0)
    for before, here in pairwise(recorders):
        alike = F.cosine_similarity(recorders[before].seen, recorders[here].seen)
        found[here] = 1 - float(alike.mean())
    return found


def choose_layers(shift: dict[int, float]) -> LayerSets:
    """Layers for `delta`: as many as `default_layers` says, `full` and the first leader the same.

    The other leaders are where shift peaks, but keep half the distance that even spreading would give.
    """
    layers = list(shift)
    full, leaders = default_layers(len(layers))
    distance = max(2, len(layers) // (2 * max(len(leaders), 1)))
    chosen = list(leaders[:1])
    for index in sorted(range(len(layers)), key=lambda index: -shift[layers[index]]):
        apart = all(abs(index - other) >= distance for other in chosen)
        if len(chosen) < len(leaders) and index > leaders[0] and apart:
            chosen.append(index)
    return LayerSets(*(tuple(layers[index] for index in sorted(part)) for part in (full, chosen)))
