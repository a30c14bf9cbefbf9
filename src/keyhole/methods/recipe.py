"""A pipeline of methods with one answer for each question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keyhole.cache.decode_step import StepBudget
from keyhole.cache.evicting import EvictingLayer
from keyhole.cache.layer import LayerCache
from keyhole.cache.request import Request
from keyhole.core.break_even import BreakEven
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.feedforward import FeedForward
from keyhole.methods.base import Method, RetrievalMethod
from keyhole.methods.composition import check_evicting, check_placing
from keyhole.methods.eviction import EvictionMethod
from keyhole.methods.oracle import Oracle
from keyhole.methods.renumbering import Renumbering
from keyhole.methods.snapkv import SnapKV
from keyhole.methods.spec import parse_stages
from keyhole.methods.tail import Tail, check_tail
from keyhole.methods.wrapper import ScoreWrapper, check_wrappers, wrappers
from keyhole.prefill import DensePrefill
from keyhole.retention import Retention
from keyhole.selection import Selector
from keyhole.storage import DeviceStorage, PooledStorage

_QUESTIONS = {
    "prefill": "compute",
    "retention": "retain",
    "storage": "place",
    "selectors": "select",
    "feedforward": "activate",
}
_NOWHERE = ModelInfo.of(0)


@dataclass(frozen=True)
class Recipe:
    """Stages, at most one for each question.

    Raises:
        SpecError: two stages answer the same question, or cannot be combined.
    """

    stages: tuple[Method, ...]

    def __post_init__(self) -> None:
        for factory, question in _QUESTIONS.items():
            names = [stage.name for stage in self.stages if answers(stage, factory)]
            if len(names) > 1:
                raise SpecError(
                    f"{' and '.join(names)} both answer the question '{question}'; keep one of them"
                )
        evicting = [stage for stage in self.stages if answers(stage, "retention")]
        working = [s for s in self.stages if answers(s, "selectors") or answers(s, "prefill")]
        for stage in evicting:
            check_evicting(stage, [other for other in working if other is not stage])
            check_placing(stage, [other for other in self.stages if answers(other, "storage")])
        check_wrappers(self.stages, evicting)
        check_tail(self.stages)

    @classmethod
    def parse(cls, method: Recipe | Method | str) -> Recipe:
        """A recipe from a method string, a method or a recipe.

        Raises:
            SpecError: as `keyhole.methods.spec.parse_stages`, or two stages answer the same question.
            TypeError: none of the three.
        """
        if isinstance(method, Recipe):
            return method
        if isinstance(method, Method):
            return cls((method,))
        if not isinstance(method, str):
            raise TypeError(f"{method!r} is not a method; give a name, a specification, a Method or a Recipe")
        return cls(parse_stages(method))

    def for_text(self, text: str) -> Recipe:
        """The recipe for one prompt, where the options of a stage depend on it."""
        return Recipe(tuple(stage.for_text(text) for stage in self.stages))

    @property
    def eviction(self) -> EvictionMethod | None:
        """The stage that drops tokens, if there is one."""
        return next((stage for stage in self.stages if isinstance(stage, EvictionMethod)), None)

    @property
    def drops(self) -> bool:
        """Whether any stage drops tokens."""
        return any(answers(stage, "retention") for stage in self.stages)

    @property
    def retrieval(self) -> RetrievalMethod | None:
        """The stage that selects, if there is one."""
        return next((stage for stage in self.stages if isinstance(stage, RetrievalMethod)), None)

    def layers(self, info: ModelInfo | int) -> list[LayerCache]:
        """New caches of one batch for the layers of `info`, or for this number of layers."""
        info, request = ModelInfo.of(info), Request()
        count, reading = len(info), self._reading(info)
        retentions, selectors = self._retentions(info), self._selectors(info)
        # Selectors need heads of equal length and contiguous slots.
        plain = PooledStorage if retentions and not selectors else DeviceStorage
        answers = zip(
            self._answer("prefill", info) or [DensePrefill() for _ in range(count)],
            self._answer("storage", info) or [plain() for _ in range(count)],
            retentions or [None] * count,
            selectors or [None] * count,
            strict=True,
        )
        layers = [
            LayerCache(prefill, storage, selector, reading=reading, request=request, place=place)
            if retention is None
            else EvictingLayer(
                prefill, storage, retention, selector, reading=reading, request=request, place=place
            )
            for place, (prefill, storage, retention, selector) in enumerate(answers)
        ]
        for layer in layers:
            layer.method = str(self)
        return layers

    def feedforward(self, info: ModelInfo) -> FeedForward | None:
        """The thresholds for a model's weights; None where all are read."""
        return self._answer("feedforward", info)

    def _reading(self, info: ModelInfo) -> StepBudget | None:
        stage = self.retrieval
        if stage is None:
            return None
        below = info.break_even if stage.dense_below == "auto" else BreakEven(int(stage.dense_below))
        if info.positions is not None and isinstance(stage, Renumbering) and stage.renumber:
            # What is read whole is read at true positions, of which no more are to be seen.
            below = below.at_most(info.positions + 1, "the model's range")
        return StepBudget(stage.budget, stage.sinks, stage.window, below)

    def _retentions(self, info: ModelInfo) -> list[Retention] | None:
        retentions = self._answer("retention", info)
        if retentions is not None:
            for stage in wrappers(self.stages):
                stage.wrap(retentions, info)
        return retentions

    def _selectors(self, info: ModelInfo) -> list[Selector] | None:
        selectors = self._answer("selectors", info)
        tail = next((stage for stage in self.stages if isinstance(stage, Tail)), None)
        return selectors if tail is None or selectors is None else tail.around(selectors)

    def _answer(self, factory: str, info: ModelInfo) -> Any:
        stage = next((stage for stage in self.stages if answers(stage, factory)), None)
        return getattr(stage, factory)(info) if stage else None

    def __str__(self) -> str:
        return " + ".join(map(str, self.stages))


def alone(method: Method) -> Recipe:
    """The shortest recipe that contains a method: itself, or with a method that it wraps."""
    if isinstance(method, Tail):
        return Recipe((method, Oracle()))
    return Recipe((method, SnapKV()) if isinstance(method, ScoreWrapper) else (method,))


def answers(stage: Method, factory: str) -> bool:
    """Whether a method, with its options, answers the question of a factory of `Method`."""
    return getattr(stage, factory)(_NOWHERE) is not None
