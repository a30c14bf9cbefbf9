"""DELTA: a few layers read everything and choose the pages of the layers behind them."""

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

    Layers read whole do not keep to the budget; `keyhole calibrate delta` finds which they should be. They
    stay on the device, whatever the `place`: to fetch them whole in each step costs more than it saves. The
    paper counts its window of 8 pages among 64: `delta(budget=896, window=128, sinks=0)`.
    """

    name: ClassVar[str] = "delta"
    paper: ClassVar[str] = "DELTA, arXiv 2510.09883"
    summary: ClassVar[str] = (
        "a few layers read everything and rank pages, the others read the same best pages"
    )
    facts: ClassVar[Facts] = Facts(
        stored="No index. While a step lasts, the scores of pages that a leader has seen, shared by its "
        "followers.",
        select="Nothing in a follower: the first one behind a leader ranks N / page pages for all. Layers "
        "of `full` read everything, as dense does; leaders read the keys a second time, `D * e * N` bytes "
        "and `G * D * N` products.",
        best_for="Deep models and long generations: nothing to index, one list of pages for all heads and "
        "for several layers.",
        weak_at="Shallow models, where few layers follow. Layers of `full` do not keep to the budget, so "
        "no more is saved than the share of followers. Heads, and layers behind one leader, share one "
        "list.",
        differs=(
            Differs("budget", "896", ALIKE),
            Differs("sinks", "0", ALIKE),
            Differs("window", "128", ALIKE),
            Differs(
                "full", "0, 1, 2, 14, 22 of 28 layers", "behind few leaders, layers read what others need"
            ),
        ),
    )

    # Followers save nearly all that dense attention takes, a leader takes half of it more. With two followers
    # for each leader it is overhead that decides, and that is paid for at a few thousand tokens.
    pays_from: ClassVar[int | None] = 4096

    budget: Budget = options.budget(
        Budget(fraction=0.1),
        mass=False,
        refusal="cannot be promised: pages are chosen by the attention of another layer, so what a layer "
        "reads of its own is not known",
        unit="tokens",
        help="Tokens read beside the always-read ones.",
    )
    page: int = options.integer(16, ge=1, unit="tokens", help="Tokens of a page.")
    full: tuple[int, ...] | None = options.layers(
        help="Layers that read everything, counted from 0 in the model; the last of each run of them leads "
        "the layers behind it. None is `default_full` of the number of layers."
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
                f"{self.name}: full names layer {unknown[0]}, but the layers that attend to everything are "
                f"{', '.join(map(str, layers))}; `keyhole calibrate delta` finds layers for a model"
            )
        return frozenset(self.full)


def roles(layers: Sequence[int], full: Set[int]) -> list[Role]:
    """What each of `layers` does: those of `full` read everything, the last of each run of them leads.

    The last layer of all has nobody to lead.
    """
    whole = [layer in full for layer in layers]
    followed = [not following for following in whole[1:]] + [False]
    return [
        (Role.LEADER if leads else Role.DENSE) if own else Role.FOLLOWER
        for own, leads in zip(whole, followed, strict=True)
    ]


def default_full(layers: int) -> tuple[int, ...]:
    """Layers to read whole of so many: one in four is dense, the first two at most, then each third leads.

    The paper's for 28 layers are 0, 1 and the leaders 2, 14, 22: most layers follow one that they are unlike.
    """
    dense = min(_DENSE, layers // _LAYERS_A_DENSE)
    leaders = range(dense, max(layers - 1, min(layers, dense + 1)), _LAYERS_A_LEADER)
    return (*range(dense), *leaders)
