"""Scores as they come in, text by text, and the rows made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from keyhole.evaluation.candidates import Candidate
from keyhole.evaluation.divergence.rows import DivergenceRow, Settings, TextScore


class Results:
    """The scores of some candidates under some settings, those of `known` rows among them."""

    def __init__(
        self, settings: Settings, chosen: Sequence[Candidate], known: Iterable[DivergenceRow] = ()
    ) -> None:
        self._settings = settings
        self._candidates = {(each.method, each.budget): each for each in chosen}
        self._scores: dict[tuple[str, str], dict[str, TextScore]] = {key: {} for key in self._candidates}
        for row in known:
            key = (row.method, row.budget)
            if row.settings.key == settings.key and key in self._scores:
                self._scores[key] |= {score.name: score for score in row.by_text}
        self._rows: dict[tuple[str, str], DivergenceRow] = {}

    def has(self, candidate: Candidate, texts: Iterable[str]) -> bool:
        """Whether these texts are done."""
        key = (candidate.method, candidate.budget)
        return key not in self._scores or all(text in self._scores[key] for text in texts)

    def add(self, candidate: Candidate, scores: Iterable[TextScore]) -> None:
        """Take in scores of texts; those there are stay as they are."""
        held = self._scores[candidate.method, candidate.budget]
        for score in scores:
            held.setdefault(score.name, score)

    def leave_out(self, candidate: Candidate) -> None:
        """Forget a candidate that its method refuses."""
        self._scores.pop((candidate.method, candidate.budget), None)

    def rows(self) -> list[DivergenceRow]:
        """A row for each candidate with any text, in the candidates' order."""
        return [self._row(key, scores) for key, scores in self._scores.items() if scores]

    def _row(self, key: tuple[str, str], scores: dict[str, TextScore]) -> DivergenceRow:
        texts = tuple(scores[name] for name in self._settings.texts if name in scores)
        held = self._rows.get(key)
        if held is None or held.by_text != texts:
            asked = self._candidates[key]
            held = self._rows[key] = DivergenceRow(self._settings, *key, asked.mass, texts, asked.error)
        return held
