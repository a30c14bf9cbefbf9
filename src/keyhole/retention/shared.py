"""Layers that keep the same tokens: the first of a group chooses, the others follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from keyhole.core.leader_board import LeaderBoard
from keyhole.retention.base import Retention, Scorer
from keyhole.retention.kept import Kept
from keyhole.retention.policy import EvictionPolicy
from keyhole.retention.recency import Recency
from keyhole.storage import Chosen, Storage


class _Leader(Retention):
    """Notes what it chose, and of what: for the end of a prompt and for the step after it, which the others
    ask about only then.
    """

    def __init__(self, own: Retention) -> None:
        super().__init__(own.scorer, own.picker, own.policy)
        self.board: LeaderBoard[Chosen | None] = LeaderBoard(notes=2)

    def expect(self, steps: int) -> None:
        self.board.hold(steps + 1)

    def choose(self, storage: Storage, kept: Kept) -> Chosen | None:
        moment, chosen = _moment(kept), super().choose(storage, kept)
        self.board.pin(moment, chosen)
        return chosen


class _Follower(Retention):
    """Scores nothing itself."""

    def __init__(self, leader: _Leader, policy: EvictionPolicy) -> None:
        super().__init__(Recency(), leader.picker, policy)
        self._board = leader.board

    def wrap(self, wrapped: Callable[[Scorer], Scorer], *, followers: bool = False) -> None:
        """It does not score."""
        if followers:
            super().wrap(wrapped)

    def choose(self, storage: Storage, kept: Kept) -> Chosen | None:  # noqa: ARG002
        chosen = self._board.read(_moment(kept))
        if chosen is None:
            return None
        heads = kept.filling.shape[1]
        if chosen.slots.shape[1] != heads:
            raise ValueError(
                f"a layer of {heads} KV heads cannot share the tokens of one with "
                f"{chosen.slots.shape[1]}; set options so that layers do not share"
            )
        return chosen.to(kept.filling.device)


def share(retentions: Sequence[Retention], leads: Sequence[bool]) -> list[Retention]:
    """The retentions of a model's layers, of which those that do not lead follow the last before that does.

    Layers of a group are to have the same `EvictionPolicy`. The first leads in any case.
    """
    shared: list[Retention] = []
    leader: _Leader | None = None
    for own, leading in zip(retentions, leads, strict=True):
        if leading or leader is None:
            leader = _Leader(own)
            shared.append(leader)
        else:
            shared.append(_Follower(leader, own.policy))
    return shared


def _moment(kept: Kept) -> str:
    return f"{kept.slots} tokens kept of {kept.seen}"
