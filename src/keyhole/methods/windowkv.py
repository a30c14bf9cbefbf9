"""WindowKV: whole windows of tokens, chosen once for a group of layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.eviction import EvictionMethod
from keyhole.methods.facts import EVICTED, Differs, Facts
from keyhole.methods.prompt_task import AGGREGATION, LOCALISATION, classified, task_of
from keyhole.retention import (
    EvictionPolicy,
    LayerShare,
    Retention,
    Scorer,
    WindowScores,
    group_pyramid,
    share,
)


class _Sizes(NamedTuple):
    """Tokens of the observation window, tokens per window, and how many of these count."""

    window: int
    omega: int
    p: int


# For LLaMA-3. The released code swaps tasks and observation windows relative to the paper.
_PRESETS = {
    ("paper", LOCALISATION): _Sizes(16, 8, 8),
    ("paper", AGGREGATION): _Sizes(32, 16, 8),
    ("code", LOCALISATION): _Sizes(32, 8, 4),
    ("code", AGGREGATION): _Sizes(16, 8, 8),
}
_AUTO = "auto"


@dataclass(frozen=True)
class WindowKV(EvictionMethod):
    """Zuo et al., "WindowKV: Task-Adaptive Group-Wise KV Cache Window Selection for Efficient LLM Inference",
    2025.

    For Qwen2.5-1.5B the paper has `windowkv(omega=32, p=32, window=4)` for localisation tasks and
    `windowkv(omega=32, p=16, window=16)` for aggregation; it does not give p, half a window is the code's.
    """

    name: ClassVar[str] = "windowkv"
    paper: ClassVar[str] = "WindowKV, arXiv 2503.17922"
    summary: ClassVar[str] = "keeps whole windows of the prompt, the same ones in a group of layers"
    facts: ClassVar[Facts] = Facts(
        stored="Kept keys and values, their positions, and the queries of the observation window in the "
        "first layer of each group.",
        select="No selection: all kept tokens are read.",
        best_for="Text whose meaning is in passages. Deep models: one layer of a group scores for all.",
        weak_at="Dropped tokens are lost to later questions. A single important token costs a whole window. "
        "The whole prompt is held until its end, which determines the scores.",
        kept=EVICTED,
        differs=(
            Differs("sinks", "0", "evicting the first tokens can end generation at once"),
            Differs("group", "8 of 32 layers, 7 of 28", "a quarter of the layers at any depth"),
            Differs(
                "task", "by a classifier", "not released; task=auto uses keywords or your own classifier"
            ),
        ),
    )

    window: int = options.integer(
        0,
        ge=0,
        unit="tokens",
        help="Newest tokens, always kept, whose attention gives the scores; 0 takes the preset's.",
    )
    prompt: str = "whole"
    layers: str = "pyramid"
    group: int = options.integer(
        0,
        ge=0,
        unit="layers",
        help="Number of consecutive layers that keep the same tokens, chosen by the first; 0 is a quarter "
        "of all layers, as published.",
    )
    task: str = options.choice(
        LOCALISATION,
        (LOCALISATION, AGGREGATION, _AUTO),
        help='Task type: "localisation" (retrieval), "aggregation", or "auto", which classifies each prompt.',
    )
    preset: str = options.choice(
        "paper",
        ("paper", "code"),
        help='Values for each task as in the "paper" or in the released "code".',
    )
    omega: int = options.integer(0, ge=0, unit="tokens", help="Tokens per window; 0 takes the preset's.")
    p: int = options.integer(
        0,
        ge=0,
        unit="tokens",
        help="A window's score is the mean of its p best tokens; omega averages all, 0 takes the preset's.",
    )
    per_head: bool = options.flag(
        False, help="Keep tokens per KV head instead of the same tokens in all heads of a layer."
    )
    classifier: str | None = options.directory(
        help="With task=auto: directory of a Hugging Face sequence classifier with two labels. None "
        "classifies by keywords of the instruction."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ragged and not self.per_head:
            raise SpecError(
                f"{self.name}: heads=adaptive needs per_head=true, since heads keep the same tokens otherwise"
            )
        if self.classifier is not None and self.task != _AUTO:
            raise SpecError(f"{self.name}: classifier={self.classifier!r} needs task=auto")

    def for_text(self, text: str) -> WindowKV:
        """The method with its task resolved for this prompt.

        Raises:
            SpecError: its classifier cannot be loaded.
        """
        if self.task != _AUTO:
            return self
        task = task_of(text) if self.classifier is None else classified(text, self.classifier)
        return replace(self, task=task, classifier=None)

    def retention(self, info: ModelInfo) -> list[Retention]:
        group = self._group(len(info))
        leads = [layer % group == 0 for layer in range(len(info))]
        return share(super().retention(info), leads)

    def scorer(self, info: ModelInfo, place: int) -> Scorer:  # noqa: ARG002
        window, omega, p = self._sizes
        return WindowScores(window, self.sinks, omega, p, per_head=self.per_head)

    def policy(self, share: LayerShare) -> EvictionPolicy:
        return super().policy(share)._replace(window=self._sizes.window)

    def _group(self, layers: int) -> int:
        return self.group or max(1, layers // 4)

    def shares(self, layers: int) -> list[LayerShare]:
        return (
            super().shares(layers) if self.layers == "uniform" else group_pyramid(layers, self._group(layers))
        )

    @property
    def _sizes(self) -> _Sizes:
        given = _Sizes(self.window, self.omega, self.p)
        if all(given):
            return given
        if self.task == _AUTO:
            raise SpecError(
                f"{self.name}: task=auto must be resolved for a prompt; use method.for_text(prompt), or give "
                f"task={LOCALISATION} or task={AGGREGATION}"
            )
        preset = _PRESETS[self.preset, self.task]
        sizes = _Sizes(*(own or other for own, other in zip(given, preset, strict=True)))
        # Half of a window, or all of it, stays that when the window is another.
        return sizes if self.p else sizes._replace(p=sizes.omega * preset.p // preset.omega or 1)
