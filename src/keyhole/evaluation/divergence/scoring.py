"""From what a batch of texts gave to the score of each text."""

from __future__ import annotations

from torch import Tensor

from keyhole.engines.transformers import KeyholeCache, activated, footprint, usage
from keyhole.evaluation.candidates import Candidate
from keyhole.evaluation.divergence.forced import Scored
from keyhole.evaluation.divergence.rows import TextScore
from keyhole.evaluation.mass import MassMeter


def shared_of(
    candidate: Candidate, cache: KeyholeCache, texts: int, steps: int, meter: MassMeter | None
) -> dict[str, float | None]:
    """What was read and held, a mean over the texts."""
    read, held = usage(cache), footprint(cache)
    found: dict[str, float | None] = {
        "read_fraction": read.read / read.tokens,
        "read": read.bytes / steps,
        **{tier: getattr(held, tier) / texts for tier in ("device", "host", "disk")},
        "weights_read": activated(cache).share,
        "mass_estimated": None if candidate.recipe.drops else read.mass / read.steps,
        "error_estimated": read.mean_error,
    }
    if meter is not None:
        tally = meter.tally
        found["mass_exact"] = tally.mass / tally.cases
        found["mass_reached"] = None if candidate.mass is None else tally.reached / tally.cases
    if meter is not None and meter.errors is not None:
        errors = meter.errors
        found["error_exact"] = errors.error / errors.cases
        found["error_kept"] = None if errors.target is None else errors.kept / errors.cases
    return {name: None if value is None else rounded(value) for name, value in found.items()}


def score_of(
    name: str, scored: Scored, dense: Tensor, row: int, shared: dict[str, float | None]
) -> TextScore:
    """The score of the text in one row of a batch, beside full attention's losses `dense [B, N]`."""
    return TextScore(
        name,
        kl=tuple(rounded(each) for each in scored.kl[row].tolist()),
        agreed=int(scored.agreed[row].sum()),
        loss=rounded(float(scored.loss[row].double().mean())),
        loss_dense=rounded(float(dense[row].double().mean())),
        **shared,  # type: ignore[arg-type]
    )


def rounded(value: float) -> float:
    """Six digits: what files hold, and what means are made of, so that a file read again gives the same."""
    return float(f"{value:.6g}")
