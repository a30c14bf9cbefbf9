"""Layers that keep the same tokens: the first of a group chooses, the others follow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from keyhole.retention.base import EvictionPolicy, Retention, Scorer
from keyhole.retention.kept import Kept
from keyhole.retention.recency import Recency
from keyhole.storage import Chosen, Storage


class _Leader(Retention):
    """Notes what it chose, and of what: for the end of a prompt and for the step after it, which the others
    ask about only then.
    """

    def __init__(self, own: Retention) -> None:
        super().__init__(own.scorer, own.picker, own.policy)
        self._notes: deque[tuple[tuple[int, int], Chosen | None]] = deque(maxlen=2)

    def choose(self, storage: Storage, kept: Kept) -> Chosen | None:
        moment, chosen = _moment(kept), super().choose(storage, kept)
        self._notes.append((moment, chosen))
        return chosen

    def told(self, kept: Kept) -> Chosen | None:
        """What was chosen of the same tokens.

        Raises:
            ValueError: nothing was chosen of these.
        """
        for moment, chosen in reversed(self._notes):
            if moment == _moment(kept):
                return chosen
        raise ValueError(
            f"nothing was chosen of {kept.slots} tokens kept of {kept.seen}: a layer runs without the one it "
            "follows; let all layers of a model take part in every step"
        )


class _Follower(Retention):
    """Scores nothing itself."""

    def __init__(self, leader: _Leader, policy: EvictionPolicy) -> None:
        super().__init__(Recency(), leader.picker, policy)
        self._leader = leader

    def wrap(self, wrapped: Callable[[Scorer], Scorer]) -> None:
        """It does not score."""

    def choose(self, storage: Storage, kept: Kept) -> Chosen | None:  # noqa: ARG002
        chosen = self._leader.told(kept)
        if chosen is None:
            return None
        heads = kept.filling.shape[1]
        if chosen.slots.shape[1] != heads:
            raise ValueError(
                f"a layer of {heads} KV heads cannot keep what one of {chosen.slots.shape[1]} chose; "
                "give options by which layers do not share"
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


def _moment(kept: Kept) -> tuple[int, int]:
    return kept.seen, kept.slots
