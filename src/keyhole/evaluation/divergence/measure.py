"""Methods times budgets on real text: each one's next-token distribution against full attention's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from keyhole.engines.transformers import KeyholeCache, detach, served_layers
from keyhole.evaluation.candidates import DENSE, Candidate
from keyhole.evaluation.divergence.batching import batches, fitting
from keyhole.evaluation.divergence.forced import Reference, Scored
from keyhole.evaluation.divergence.passages import Passage
from keyhole.evaluation.divergence.results import Results
from keyhole.evaluation.divergence.rows import DivergenceRow
from keyhole.evaluation.divergence.scoring import score_of, shared_of
from keyhole.evaluation.divergence.settings import settings_of
from keyhole.evaluation.mass import MassMeter
from keyhole.evaluation.prompts import Prompt
from keyhole.evaluation.starts import Starts

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
        name: of the model, for people; the kind of model where not given.
        batch: texts computed at once, at most; as many as fit into free memory where not given.
        exact_mass: measure the exact attention mass, and the exact error of attention's output, at all
            budgets; otherwise at budgets of mass and of error, for it costs as much as reading everything.
        known: rows found before; what they have of these settings is not measured again.
        found: called with all rows so far whenever a candidate is done with a batch.
        refused: called with a candidate that its method refuses, which is left out; without it, that raises.
        timed: called with the seconds of what was measured.

    Raises:
        ValueError: sizes out of range, before anything is computed.
    """
    settings = settings_of(model, name or str(model.config.model_type), texts, context, tokens)
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
                wanted = self._exact_mass or candidate.mass is not None or candidate.error is not None
                watched = served_layers(begun.cache) if wanted and not candidate.recipe.drops else []
                meter = MassMeter(watched, candidate.mass, error=candidate.error, errors=self._exact_mass)
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
        shared = shared_of(candidate, cache, len(names), scored.kl.shape[1], meter)
        scores = [score_of(name, scored, reference.loss, row, shared) for row, name in enumerate(names)]
        self._results.add(candidate, scores)
        if self._timed is not None:
            seconds = Timing(candidate.method, candidate.budget, len(names), prefill, scored.seconds)
            self._timed(seconds)
        if self._found is not None:
            self._found(self._results.rows())
