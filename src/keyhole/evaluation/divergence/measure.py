"""Methods times budgets on real text: each one's next-token distribution against full attention's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from keyhole.core.version import __version__
from keyhole.engines.transformers import KeyholeCache, activated, detach, footprint, served_layers, usage
from keyhole.engines.transformers.fingerprint import fingerprint
from keyhole.evaluation.candidates import DENSE, Candidate
from keyhole.evaluation.divergence.batching import batches, fitting
from keyhole.evaluation.divergence.forced import Reference, Scored
from keyhole.evaluation.divergence.passages import Passage
from keyhole.evaluation.divergence.results import Results
from keyhole.evaluation.divergence.rows import DivergenceRow, Settings, TextScore
from keyhole.evaluation.mass import MassMeter
from keyhole.evaluation.prompts import Prompt
from keyhole.evaluation.starts import Starts
from keyhole.generation.decoding import position_range

TASK = "kl"

Progress = Callable[[str, int, int], None]  # what is being done, units done, units in all
Found = Callable[[list[DivergenceRow]], None]
Refused = Callable[[Candidate, ValueError], None]


class Timing(NamedTuple):
    """Seconds of one candidate and batch: until the first step could start, and of each step."""

    method: str
    budget: str
    texts: int
    prefill: float
    steps: list[float]


def check_range(model: PreTrainedModel, context: int, tokens: int) -> None:
    """Raise ValueError where context and tokens are more than the model's range, or too few to measure."""
    if context < 2 or tokens < 1:
        raise ValueError(
            f"context={context}, tokens={tokens} leave nothing to measure; give at least 2 and 1"
        )
    limit = position_range(model)
    if limit is not None and context + tokens > limit:
        raise ValueError(
            f"a context of {context} tokens and {tokens} to predict take {context + tokens} positions, the "
            f"model has {limit}; give a context of at most {limit - tokens}"
        )


def settings_of(
    model: PreTrainedModel, name: str, texts: Sequence[Passage], context: int, tokens: int
) -> Settings:
    """What the rows of a measurement share.

    Raises:
        ValueError: context and tokens are more than the model's range, or less than a measurement needs.
    """
    check_range(model, context, tokens)
    names, digests = tuple(text.name for text in texts), tuple(text.digest for text in texts)
    dtype = str(model.dtype).removeprefix("torch.")
    return Settings(name, fingerprint(model), dtype, context, tokens, names, digests, __version__)


def divergence(
    model: PreTrainedModel,
    chosen: Sequence[Candidate],
    texts: Sequence[Passage],
    *,
    context: int,
    tokens: int,
    name: str = "",
    batch: int | None = None,
    exact_mass: bool = False,
    known: Iterable[DivergenceRow] = (),
    found: Found | None = None,
    refused: Refused | None = None,
    timed: Callable[[Timing], object] | None = None,
    progress: Progress | None = None,
) -> list[DivergenceRow]:
    """A row for every candidate: KL(dense || method) of the tokens that follow a prefix of real text.

    Texts are computed several at once. The prefix is computed once for all methods that only read it
    differently, and a method's index once for all budgets. Rows do not depend on time or machine load, and on
    the batch by rounding only.

    Args:
        texts: as `passages` makes them for this context and these tokens.
        name: of the model, for people.
        batch: texts computed at once, at most; as many as fit into free memory where not given.
        exact_mass: measure the exact attention mass at all budgets; otherwise at budgets of mass only, for it
            costs as much as reading everything.
        known: rows found before; what they have of these settings is not measured again.
        found: called with all rows so far whenever a candidate is done with a batch.
        refused: called with a candidate that its method refuses, which is left out; without it, that raises.
        timed: called with the seconds of what was measured.

    Raises:
        ValueError: sizes out of range, before anything is computed.
    """
    settings = settings_of(model, name or model.name_or_path, texts, context, tokens)
    results = Results(settings, chosen, known)
    queries = any(candidate.recipe.drops for candidate in chosen)
    run = _Run(model, results, context, exact_mass, refused or _raise, timed, found)
    try:
        most = batch if batch is not None else fitting(model, context, tokens, queries=queries)
        parts = batches(texts, most)
        total, done = len(parts) * len(chosen), 0
        for part in parts:
            for candidate in run.measure(part, chosen, queries):
                if progress is not None:
                    progress(f"{TASK}: {candidate.method} {candidate.budget}", done, total)
                done += 1
    finally:
        detach(model)
    return results.rows()


def _raise(_: Candidate, error: ValueError) -> None:
    raise error


class _Run:
    """The work on one batch of texts after the other."""

    def __init__(
        self,
        model: PreTrainedModel,
        results: Results,
        context: int,
        exact_mass: bool,
        refused: Refused,
        timed: Callable[[Timing], object] | None,
        found: Found | None,
    ) -> None:
        self._model, self._results, self._context = model, results, context
        self._exact_mass, self._refused, self._timed, self._found = exact_mass, refused, timed, found

    def measure(
        self, texts: Sequence[Passage], chosen: Sequence[Candidate], queries: bool
    ) -> Iterable[Candidate]:
        """Measure the candidates on some texts; yields each one before its turn."""
        names = [text.name for text in texts]
        left = [candidate for candidate in chosen if not self._results.has(candidate, names)]
        if not left:
            yield from chosen
            return
        yield DENSE
        tokens = torch.stack([text.tokens for text in texts]).to(self._model.device)
        prompt = Prompt(self._model, tokens[:, : self._context], queries=queries)
        starts = Starts(prompt)
        with starts.begin(DENSE) as begun:
            reference = Reference(self._model, tokens, self._context, begun.cache)
            self._add(DENSE, names, begun.cache, begun.seconds, reference, reference.scored, None)
        for candidate in chosen:
            if candidate == DENSE:
                continue
            yield candidate
            if candidate in left:
                self._try(candidate, names, starts, reference)

    def _try(self, candidate: Candidate, names: list[str], starts: Starts, reference: Reference) -> None:
        try:
            with starts.begin(candidate) as begun:
                wanted = self._exact_mass or candidate.mass is not None
                watched = served_layers(begun.cache) if wanted and not candidate.recipe.drops else []
                meter = MassMeter(watched, candidate.mass)
                scored = reference.score(begun.cache, meter.settle)
                known = meter if watched else None
                self._add(candidate, names, begun.cache, begun.seconds, reference, scored, known)
        except ValueError as error:
            self._results.leave_out(candidate)
            self._refused(candidate, error)

    def _add(
        self,
        candidate: Candidate,
        names: list[str],
        cache: KeyholeCache,
        prefill: float,
        reference: Reference,
        scored: Scored,
        meter: MassMeter | None,
    ) -> None:
        shared = _shared(candidate, cache, len(names), scored.kl.shape[1], meter)
        scores = [_score(name, scored, reference.loss, row, shared) for row, name in enumerate(names)]
        self._results.add(candidate, scores)
        if self._timed is not None:
            seconds = Timing(candidate.method, candidate.budget, len(names), prefill, scored.seconds)
            self._timed(seconds)
        if self._found is not None:
            self._found(self._results.rows())


def _shared(
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
    }
    if meter is not None:
        tally = meter.tally
        found["mass_exact"] = tally.mass / tally.cases
        found["mass_reached"] = None if candidate.mass is None else tally.reached / tally.cases
    return {name: None if value is None else rounded(value) for name, value in found.items()}


def _score(name: str, scored: Scored, dense: Tensor, row: int, shared: dict[str, float | None]) -> TextScore:
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
