"""DELTA: a few layers read everything and select pages for the layers after them."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import ALIKE, Differs, Facts
from keyhole.selection import Selector, SharedPageSelector
from keyhole.selection.shared import Board, Role
from keyhole.storage import Storage, make_storage

_DENSE = 2  # at most
_LAYERS_A_LEADER, _LAYERS_A_DENSE = 3, 4


@dataclass(frozen=True)
class Delta(RetrievalMethod):
    """Entezari Zarch et al., "DELTA: Dynamic Layer-Aware Token Attention for Efficient Long-Context
    Reasoning", 2025.

    Layers in `full` read everything and exceed the budget; `keyhole calibrate delta` finds good ones for a
    model. They stay on the device whatever `place` is, since fetching them whole in every step would cost
    more than it saves. The paper includes its window of 8 pages in a budget of 64 pages:
    `delta(budget=896, window=128, sinks=0)`.
    """

    name: ClassVar[str] = "delta"
    paper: ClassVar[str] = "DELTA, arXiv 2510.09883"
    summary: ClassVar[str] = (
        "a few layers read everything and rank pages; the layers after them read the best pages"
    )
    facts: ClassVar[Facts] = Facts(
        stored="No index. During a step, the page scores of a leading layer, shared with its followers.",
        select="Followers compute no scores: the first one after a leader ranks N / page pages for all of "
        "them. Layers in `full` read everything, as dense attention does; leaders read the keys a second "
        "time (`D * e * N` bytes, `G * D * N` products).",
        best_for="Deep models and long generations: no index to build, and one page list for all heads of "
        "several layers.",
        weak_at="Shallow models, which have few followers. Layers in `full` exceed the budget, so savings "
        "are limited to the share of followers. All heads, and all followers of one leader, share one list.",
        differs=(
            Differs("budget", "896", ALIKE),
            Differs("sinks", "0", ALIKE),
            Differs("window", "128", ALIKE),
            Differs(
                "full",
                "0, 1, 2, 14, 22 of 28 layers",
                "with few leaders, layers read pages that suit distant layers",
            ),
        ),
    )

    # Followers save nearly all of dense attention's time, a leader takes 1.5 times as long. With two
    # followers per leader the fixed overhead decides, which is recovered at a few thousand tokens.
    pays_from: ClassVar[int | None] = 4096

    budget: Budget = options.budget(
        Budget(fraction=0.1),
        mass=False,
        refusal="cannot be guaranteed, because pages are selected by the attention of another layer",
        unit="tokens",
        help="Tokens read per step, in addition to sinks and window.",
    )
    page: int = options.integer(16, ge=1, unit="tokens", help="Tokens per page.")
    full: tuple[int, ...] | None = options.layers(
        help="Model layers that read everything, counted from 0; the last of each consecutive run leads the "
        "layers after it. None: the first two at most (one in four), then every third layer."
    )

    @property
    def needs_positions(self) -> bool:
        return True

    def storage(self, info: ModelInfo) -> list[Storage] | None:
        placed = super().storage(info)
        if not placed:
            return placed
        full = self._full(info.layers)
        return [
            make_storage("device", self.kv_dtype) if layer in full else storage
            for layer, storage in zip(info.layers, placed, strict=True)
        ]

    def selectors(self, info: ModelInfo) -> list[Selector]:
        if not info.layers:
            return []
        selectors: list[Selector] = []
        board = None
        for role in roles(info.layers, self._full(info.layers)):
            if role is Role.LEADER:
                board = Board()
            selectors.append(SharedPageSelector(role, board, self.page))
        return selectors

    def _full(self, layers: Sequence[int]) -> frozenset[int]:
        if self.full is None:
            return frozenset(layers[index] for index in default_full(len(layers)))
        unknown = sorted(set(self.full) - set(layers))
        if unknown:
            raise SpecError(
                f"{self.name}: full contains layer {unknown[0]}, but the layers with full attention are "
                f"{', '.join(map(str, layers))}; `keyhole calibrate delta` finds layers for a model"
            )
        return frozenset(self.full)


def roles(layers: Sequence[int], full: Set[int]) -> list[Role]:
    """The role of each of `layers`: those in `full` read everything, the last of each run is a leader.

    The model's last layer has no followers, so it never leads.
    """
    whole = [layer in full for layer in layers]
    followed = [not following for following in whole[1:]] + [False]
    return [
        (Role.LEADER if leads else Role.DENSE) if own else Role.FOLLOWER
        for own, leads in zip(whole, followed, strict=True)
    ]


def default_full(layers: int) -> tuple[int, ...]:
    """Default `full`: one layer in four is dense (the first two at most), then every third leads.

    The paper has 0, 1 and the leaders 2, 14, 22 of 28 layers, so that most layers follow a distant one.
    """
    dense = min(_DENSE, layers // _LAYERS_A_DENSE)
    leaders = range(dense, max(layers - 1, min(layers, dense + 1)), _LAYERS_A_LEADER)
    return (*range(dense), *leaders)
