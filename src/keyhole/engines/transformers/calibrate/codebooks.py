"""Codebooks for a model (A2ATS), from the keys and queries that texts make it compute.

Source: arXiv 2502.12665; see `keyhole.selection.quantisers.codebook`.

Legend: B batch, H query heads, Hkv KV heads, T tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from keyhole.attention import Logits
from keyhole.core.distances import Distances
from keyhole.engines.transformers.calibrate.recording import recorded
from keyhole.engines.transformers.devices import input_device
from keyhole.engines.transformers.rope import layer_rope
from keyhole.methods import A2ATS
from keyhole.prefill import DensePrefill
from keyhole.selection.quantisers.codebook import Codebook, fit_codebook
from keyhole.storage import Storage

_PIECE = 2048  # queries turned at a time, to bound temporary memory
_HELD_OUT = 16  # one key in so many is not fitted on, but judged by


class Fitted(NamedTuple):
    """A layer's codebook `[1, Hkv, C, D]`, and the relative error of its logits for keys held out."""

    book: Codebook
    error: float


class Recorder(DensePrefill):
    """Dense attention that notes keys without their rotation, and the second moment of queries.

    Queries are turned as they will ask the codebook, for each range of distances.
    """

    def __init__(self, ranking: Distances) -> None:
        self.ranking = ranking
        self.keys: list[Tensor] = []  # each `[1, Hkv, T, D]`
        self.moment = torch.zeros(())  # `[1, Hkv, D, D]`, summed over the heads of a group and all tokens

    def attend(self, query: Tensor, storage: Storage, logits: Logits, mask: Tensor | None) -> Tensor:
        positions = torch.arange(storage.length - query.shape[2], storage.length, device=query.device)
        keys = storage.keys(int(positions[0]))
        self.keys.append(self.ranking.keys(keys, positions, positions.new_zeros(1)).to(keys.dtype).cpu())
        for part in query.split(_PIECE, dim=2):
            self.moment = self.moment + self._of_queries(part, positions[: part.shape[2]], keys.shape[1])
            positions = positions[part.shape[2] :]
        return super().attend(query, storage, logits, mask)

    def _of_queries(self, query: Tensor, positions: Tensor, heads: int) -> Tensor:
        """Second moment `[1, Hkv, D, D]` of `query [1, H, T, D]`, on the host."""
        bare = self.ranking.rope.unrotate(query, positions.unsqueeze(0))
        grouped = bare.unflatten(1, (heads, -1)).flatten(2, 3)
        turned = self.ranking.turned(grouped.unsqueeze(2)).flatten(2, 3)
        return (turned.transpose(-1, -2) @ turned).cpu()


@torch.no_grad()
def fit_codebooks(
    model: PreTrainedModel,
    prompts: Iterable[Tensor],
    *,
    method: A2ATS,
    codewords: int,
    iterations: int,
    fitted: Callable[[int, int], object] = lambda _done, _of: None,
) -> dict[int, Fitted]:
    """Codebooks of the layers that attend to everything, by their places in the model.

    Args:
        prompts: token ids `[1, T]`, each run through the model by itself; those of one token are passed over.
        method: the ranges of distances that the codebooks will be asked for.
        fitted: called with how many layers of how many are done.

    Raises:
        UnsupportedModelError: the model cannot be served, or its rotations are not understood.
        ValueError: fewer keys than codewords.
    """
    recorders = recorded(model, prompts, lambda place: Recorder(method.ranking(layer_rope(model, place))))
    found: dict[int, Fitted] = {}
    for place in sorted(recorders):
        # Not needed again, and there are many.
        found[place] = _fit(recorders.pop(place), input_device(model), codewords, iterations)
        fitted(len(found), len(found) + len(recorders))
    return found


def _fit(recorder: Recorder, device: torch.device, codewords: int, iterations: int) -> Fitted:
    keys = torch.cat(recorder.keys, dim=2).to(device)
    held_out = torch.arange(keys.shape[2], device=device) % _HELD_OUT == _HELD_OUT - 1
    taken = keys[:, :, ~held_out].float()
    if taken.shape[2] < codewords:
        raise ValueError(
            f"{taken.shape[2]} keys are too few for {codewords} codewords; give more text, or fewer codewords"
        )
    moment = recorder.moment.to(device)
    book = fit_codebook(taken, moment, codewords, iterations=iterations, spread=True)
    return Fitted(book, _logit_error(book, keys[:, :, held_out].float()))


def _logit_error(book: Codebook, keys: Tensor) -> float:
    """Root mean squared error of logits over their root mean square, for queries as were seen."""
    if not keys.shape[2]:
        return float("nan")
    wanted = keys @ book.metric
    labels = book.encode(keys).long().unsqueeze(-1)
    met = book.points.gather(2, labels.expand(-1, -1, -1, wanted.shape[-1]))
    return float((wanted - met).norm() / wanted.norm())
