"""Thresholds for a model's heads (SALE), from prompts that it computes.

Source: arXiv 2505.24179; see `keyhole.prefill.salefit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor
from transformers import PreTrainedModel

from keyhole.attention import Logits
from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.transformers.calibrate.recording import recorded
from keyhole.kernels import Reach
from keyhole.prefill import DensePrefill
from keyhole.prefill.salefit import ThresholdFit, threshold_fit
from keyhole.prefill.salelayer import LayerFit
from keyhole.storage import Storage


class _Fitter(DensePrefill):
    """Computes densely, so that errors do not add up over layers, and fits thresholds to what it sees."""

    def __init__(self, fit: LayerFit | ThresholdFit, fitted: Callable[[], object]) -> None:
        self.fit, self.fitted = fit, fitted

    def attend(self, query: Tensor, storage: Storage, logits: Logits, mask: Tensor | None) -> Tensor:
        if logits.softcap is not None or logits.sink_logits is not None:
            raise UnsupportedModelError(
                "the model's logits are soft-capped or have sinks, so its prompts are always computed whole; "
                "leave `sale` out"
            )
        out = super().attend(query, storage, logits, mask)
        self.fit.see(query, storage.keys(), storage.values(), logits, out)
        self.fitted()
        return out


def fit_thresholds(
    model: PreTrainedModel,
    prompts: Iterable[Tensor],
    *,
    reach: Reach,
    error: float,
    kind: str = "layer",
    fitted: Callable[[], object] = lambda: None,
) -> dict[int, Tensor]:
    """float32 `[H]` for each served layer, by its place in the model.

    Args:
        prompts: token ids `[1, T]`, each run through the model by itself; those of one token are passed over.
        error: how large an error may be, of the kind that `threshold_fit` names.
        fitted: called whenever a layer has seen a prompt.

    Raises:
        UnsupportedModelError: the model cannot be served, or has soft-capped logits or sink logits.
        ValueError: no prompt is of two tokens.
    """
    fitters = recorded(model, prompts, lambda _: _Fitter(threshold_fit(reach, error, kind), fitted))
    if not fitters:
        raise ValueError("no prompt has two tokens; give more text")
    return {place: fitter.fit.tau for place, fitter in fitters.items()}
