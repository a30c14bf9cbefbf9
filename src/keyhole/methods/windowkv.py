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
    """Newest tokens that score, tokens of a window, and how many of these count."""

    window: int
    omega: int
    p: int


# For LLaMA-3. The released code has modes and observation windows the other way round than the paper.
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

    For Qwen2.5-1.5B the paper has `windowkv(omega=32, p=32, window=4)` to find something and
    `windowkv(omega=32, p=16, window=16)` to make something of all; it names no p, half a window is
    the code's.
    """

    name: ClassVar[str] = "windowkv"
    paper: ClassVar[str] = "WindowKV, arXiv 2503.17922"
    summary: ClassVar[str] = "keeps whole windows of the prompt, the same ones in a group of layers"
    facts: ClassVar[Facts] = Facts(
        stored="The keys and values that were kept, their positions, and the window's queries in the first "
        "layer of each group.",
        select="Nothing is selected: all that was kept is read.",
        best_for="Text that is understood by passages. Deep models: one layer in a group scores for all.",
        weak_at="A later question may need what was dropped. Tokens that matter alone take a window with "
        "them. The whole prompt is held until it is complete, since only its end tells what to keep.",
        kept=EVICTED,
        differs=(
            Differs("sinks", "0", "evicting the first tokens can end generation at once"),
            Differs("group", "8 of 32 layers, 7 of 28", "the same share of any depth"),
            Differs("task", "by a classifier", "it was not released; give task=auto for one of your own"),
        ),
    )

    window: int = options.integer(
        0,
        ge=0,
        unit="tokens",
        help="Newest tokens that are always kept, and whose attention counts; 0 is the preset's.",
    )
    prompt: str = "whole"
    layers: str = "pyramid"
    group: int = options.integer(
        0,
        ge=0,
        unit="layers",
        help="Layers that keep the same tokens: the first of them chooses; 0 is a quarter of all, as it was "
        "published for 28 and 32 layers.",
    )
    task: str = options.choice(
        LOCALISATION,
        (LOCALISATION, AGGREGATION, _AUTO),
        help='What prompts ask for, "localisation" of something in a text or "aggregation" of all of it; '
        '"auto" finds out, see `for_text`.',
    )
    preset: str = options.choice(
        "paper",
        ("paper", "code"),
        help='Values for each task by the "paper" or by the released "code".',
    )
    omega: int = options.integer(0, ge=0, unit="tokens", help="Tokens of a window; 0 is the preset's.")
    p: int = options.integer(
        0,
        ge=0,
        unit="tokens",
        help="Best tokens of a window whose mean is its score; omega for all of them, 0 is the preset's.",
    )
    per_head: bool = options.flag(
        False, help="Each KV head keeps tokens of its own; else all heads of a layer keep the same."
    )
    classifier: str | None = options.directory(
        help="With task=auto, a Hugging Face sequence classifier of two labels; without one, words of the "
        "instruction decide."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ragged and not self.per_head:
            raise SpecError(f"{self.name}: heads=adaptive goes with per_head=true, else heads keep the same")
        if self.classifier is not None and self.task != _AUTO:
            raise SpecError(f"{self.name}: classifier={self.classifier!r} goes with task=auto")

    def for_text(self, text: str) -> WindowKV:
        """The method for a prompt, where it depends on what that asks for.

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
                f"{self.name}: task=auto must be settled by a prompt: use what for_text(prompt) returns, or "
                f"give task={LOCALISATION} or task={AGGREGATION}"
            )
        preset = _PRESETS[self.preset, self.task]
        sizes = _Sizes(*(own or other for own, other in zip(given, preset, strict=True)))
        # Half of a window, or all of it, stays that when the window is another.
        return sizes if self.p else sizes._replace(p=sizes.omega * preset.p // preset.omega or 1)
