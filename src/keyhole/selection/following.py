"""Layers that read the clusters which another layer has picked (MPCache's pairs)."""

from __future__ import annotations

from keyhole.selection.base import Selection, Step, Unindexed
from keyhole.selection.clusters import ClusterSelector


class FollowingClusters(Unindexed):
    """Reads the clusters that the layer it follows has picked in the same step."""

    def __init__(self, leader: ClusterSelector) -> None:
        self.leader = leader

    @property
    def minimum(self) -> int:
        return self.leader.minimum

    def select(self, step: Step) -> Selection:
        picked = self.leader.board.pick(step, self.leader.fine)
        heads = step.storage.keys(step.storage.length - 1).shape[1]
        if picked.slots.shape[1] != heads:
            raise ValueError(
                f"a layer of {heads} KV heads cannot share the tokens of one with {picked.slots.shape[1]}; "
                "give share=false"
            )
        return picked

    def bytes_read(self, step: Step) -> int:  # noqa: ARG002
        return 0
