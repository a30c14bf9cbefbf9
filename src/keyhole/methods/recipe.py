"""A pipeline of methods, put together to one answer for each question."""

from __future__ import annotations

from dataclasses import dataclass

from keyhole.errors import SpecError
from keyhole.layer import LayerCache
from keyhole.methods.base import Method, RetrievalMethod
from keyhole.methods.spec import parse_stages
from keyhole.prefill import DensePrefill
from keyhole.reader import Reading
from keyhole.retention import KeepEverything
from keyhole.storage import DeviceStorage

_QUESTIONS = {"prefill": "compute", "retention": "retain", "storage": "place", "selectors": "select"}


@dataclass(frozen=True)
class Recipe:
    """Stages, no two of which answer the same question."""

    stages: tuple[Method, ...]

    def __post_init__(self) -> None:
        for factory, question in _QUESTIONS.items():
            names = [stage.name for stage in self.stages if answers(stage, factory)]
            if len(names) > 1:
                raise SpecError(
                    f"{' and '.join(names)} both answer the question '{question}'; keep one of them"
                )

    @classmethod
    def parse(cls, method: Recipe | Method | str) -> Recipe:
        """Read a method, a specification, or a recipe itself.

        Raises:
            SpecError: as `keyhole.methods.spec.parse_stages`, or two stages answer one question.
            TypeError: none of the three.
        """
        if isinstance(method, Recipe):
            return method
        if isinstance(method, Method):
            return cls((method,))
        if not isinstance(method, str):
            raise TypeError(f"{method!r} is not a method; give a name, a specification, a Method or a Recipe")
        return cls(parse_stages(method))

    def layers(self, count: int, dense_below: int = 0) -> list[LayerCache]:
        """Fresh caches for so many layers of one batch; below `dense_below` tokens they read everything."""
        retrieval = self._stage("selectors")
        selectors, reading = None, None
        if isinstance(retrieval, RetrievalMethod):
            selectors = retrieval.selectors(count)
            reading = Reading(retrieval.budget, retrieval.sinks, retrieval.window, dense_below)
        return [
            LayerCache(
                prefill=self._answer("prefill") or DensePrefill(),
                retention=self._answer("retention") or KeepEverything(),
                storage=self._answer("storage") or DeviceStorage(),
                selector=selectors[index] if selectors else None,
                reading=reading,
            )
            for index in range(count)
        ]

    def _stage(self, factory: str) -> Method | None:
        return next((stage for stage in self.stages if answers(stage, factory)), None)

    def _answer(self, factory: str):
        stage = self._stage(factory)
        return getattr(stage, factory)() if stage else None

    def __str__(self) -> str:
        return " + ".join(map(str, self.stages))


def answers(stage: Method, factory: str) -> bool:
    """Whether a method answers the question that a factory of `Method` stands for."""
    return getattr(type(stage), factory) is not getattr(Method, factory)
