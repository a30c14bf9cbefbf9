"""Methods that change the scores of an eviction method."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods.base import Method
from keyhole.retention import Retention, Scorer


@dataclass(frozen=True)
class ScoreWrapper(Method):
    """Wraps the scorers of the stage that drops tokens: `criticalkv + snapkv`.

    It answers no question itself. Of several wrappers, the first is the outermost, but those that are
    `around_others` are around all others. One that is `following` also wraps what layers hold that leave the
    choice to another layer.
    """

    around_others: ClassVar[bool] = False
    following: ClassVar[bool] = False

    @abstractmethod
    def wrapped(self, scorer: Scorer, info: ModelInfo, place: int) -> Scorer:
        """The scorer to use in place of another one, of layer `place` of the model."""

    def wrap(self, retentions: list[Retention], info: ModelInfo) -> None:
        """Wrap the scorer of each served layer.

        Raises:
            SpecError: the scores cannot be wrapped.
        """
        for retention, place in zip(retentions, info.layers, strict=True):
            retention.wrap(
                lambda scorer, place=place: self.wrapped(scorer, info, place), followers=self.following
            )


def wrappers(stages: tuple[Method, ...]) -> list[ScoreWrapper]:
    """The wrappers of a recipe, the innermost first."""
    found = [stage for stage in reversed(stages) if isinstance(stage, ScoreWrapper)]
    return sorted(found, key=lambda stage: stage.around_others)


def check_wrappers(stages: tuple[Method, ...], evicting: list[Method]) -> None:
    """Raise SpecError for a wrapper without a stage that drops tokens."""
    for stage in stages:
        if isinstance(stage, ScoreWrapper) and not evicting:
            raise SpecError(
                f"{stage.name} changes the scores of a method that drops tokens, and the recipe has none; "
                f"write {stage.name} + snapkv, or another one"
            )
