"""DELTA: a few layers read everything and select pages for the layers after them."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import ALIKE, Differs, Facts
from keyhole.selection import Selector, SharedPageSelector
from keyhole.selection.shared import Board, Role
from keyhole.storage import Storage, make_storage

_FIRST_LEADER, _LAYERS_A_LEADER = 2, 3


@dataclass(frozen=True)
class Delta(RetrievalMethod):
    """Entezari Zarch et al., "DELTA: Dynamic Layer-Aware Token Attention for Efficient Long-Context
    Reasoning", 2025.

    Layers in `full` read everything and exceed the budget, as the paper's leading layers do. Layers in
    `leaders`, which are not the paper's, rank by all keys and then read only what they selected, so that
    there can be twice as many at equal bytes. Both stay on the device whatever `place` is, since fetching
    them whole in every step would cost more than it saves. `keyhole calibrate delta` finds leaders for a
    model. The paper includes its window of 8 pages in a budget of 64 pages, and has for 28 layers:
    `delta(budget=896, page=16, window=128, sinks=0, full=(0, 1, 2, 14, 22))`.
    """

    name: ClassVar[str] = "delta"
    paper: ClassVar[str] = "DELTA, arXiv 2510.09883"
    summary: ClassVar[str] = (
        "a few layers read everything and rank pages; the layers after them read the best pages"
    )
    facts: ClassVar[Facts] = Facts(
        stored="No index. During a step, the page scores of a leading layer, shared with its followers.",
        select="Followers compute no scores: the first one after a leader ranks N / page pages for all of "
        "them. Layers in `leaders` read all keys (`D * e * N` bytes, `G * D * N` products). Layers in `full` "
        "read everything, as dense attention does; where they lead, they read the keys a second time.",
        best_for="Deep models and long generations: no index to build, and one page list for all heads of "
        "several layers.",
        weak_at="Shallow models, which have few followers. Layers in `full` and `leaders` exceed the budget, "
        "so savings are limited to the share of followers. All heads, and all followers of one leader, share "
        "one list.",
        differs=(
            Differs("budget", "896", ALIKE),
            Differs("sinks", "0", ALIKE),
            Differs("window", "128", ALIKE),
            Differs(
                "page", "16", "leaders score every token, so small pages cost nothing and read more mass"
            ),
            Differs("full", "0, 1, 2, 14, 22 of 28 layers", "leaders that read only keys cost half as much"),
            Differs("leaders", "none", "with few leaders, layers read pages that suit distant layers"),
        ),
    )

    # Followers save nearly all of dense attention's time, a leader somewhat less than half. With two
    # followers per leader the fixed overhead decides, which is recovered at a few thousand tokens.
    pays_from: ClassVar[int | None] = 4096

    budget: Budget = options.budget(
        Budget(fraction=0.1),
        mass=False,
        refusal="cannot be guaranteed, because pages are selected by the attention of another layer",
        unit="tokens",
        help="Tokens read per step, in addition to sinks and window.",
    )
    page: int = options.integer(1, ge=1, unit="tokens", help="Tokens per page.")
    full: tuple[int, ...] | None = options.layers(
        help="Model layers that read everything, counted from 0; the last of each consecutive run leads the "
        "layers after it. None: the first layer, or none where `leaders` is given."
    )
    leaders: tuple[int, ...] | None = options.layers(
        help="Model layers that rank all tokens and read what they select; they lead the layers after them. "
        "None: every third layer from the third on, or none where `full` is given."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        both = sorted(set(self.full or ()) & set(self.leaders or ()))
        if both:
            raise SpecError(
                f"{self.name}: layer {both[0]} is in full and in leaders; give each layer once, in full to "
                "read it whole"
            )

    @property
    def needs_positions(self) -> bool:
        return True

    def storage(self, info: ModelInfo) -> list[Storage] | None:
        placed = super().storage(info)
        if not placed:
            return placed
        return [
            storage if role is Role.FOLLOWER else make_storage("device", self.kv_dtype)
            for role, storage in zip(self._roles(info.layers), placed, strict=True)
        ]

    def selectors(self, info: ModelInfo) -> list[Selector]:
        if not info.layers:
            return []
        selectors: list[Selector] = []
        board = None
        for role in self._roles(info.layers):
            if role in (Role.LEADER, Role.RANKER):
                board = Board()
            selectors.append(SharedPageSelector(role, board, self.page))
        return selectors

    def _roles(self, layers: Sequence[int]) -> list[Role]:
        if self.full is None and self.leaders is None:
            full, leaders = (tuple(layers[at] for at in part) for part in default_layers(len(layers)))
            return roles(layers, set(full), set(leaders))
        for name, given in (("full", self.full or ()), ("leaders", self.leaders or ())):
            unknown = sorted(set(given) - set(layers))
            if unknown:
                raise SpecError(
                    f"{self.name}: {name} contains layer {unknown[0]}, but the layers with full attention "
                    f"are {', '.join(map(str, layers))}; `keyhole calibrate delta` finds layers for a model"
                )
        return roles(layers, set(self.full or ()), set(self.leaders or ()))


def roles(layers: Sequence[int], full: Set[int], leaders: Set[int] = frozenset()) -> list[Role]:
    """The role of each of `layers`: those in `full` read everything, the last of each run is a leader.

    Those in `leaders` rank. A layer in `full` that no follower comes after, such as the model's last, never
    leads.
    """
    own = [
        Role.RANKER if layer in leaders else Role.DENSE if layer in full else Role.FOLLOWER
        for layer in layers
    ]
    after = [*own[1:], Role.DENSE]
    return [
        Role.LEADER if role is Role.DENSE and following is Role.FOLLOWER else role
        for role, following in zip(own, after, strict=True)
    ]


class LayerSets(NamedTuple):
    """The layers of `full` and of `leaders`."""

    full: tuple[int, ...]
    leaders: tuple[int, ...]


def default_layers(layers: int) -> LayerSets:
    """Default `full` and `leaders`: the first layer is read whole, then every third from the third on ranks.

    The paper has 0, 1 and the leaders 2, 14, 22 of 28 layers, so that most layers follow a distant one.
    """
    return LayerSets(tuple(range(min(layers, 1))), tuple(range(_FIRST_LEADER, layers, _LAYERS_A_LEADER)))
