"""Select: which kept tokens a query reads."""

from keyhole.selection.base import Capturable, Selection, Selector, Step
from keyhole.selection.blocks import RepresentativeSelector
from keyhole.selection.boxes import BoxSelector
from keyhole.selection.centroids import CentroidSelector, ZoneSelector
from keyhole.selection.clusters import ClusterSelector
from keyhole.selection.coded_boxes import CodedBoxSelector
from keyhole.selection.codewords import CodewordSelector
from keyhole.selection.compressed import CompressedSelector
from keyhole.selection.distant import DistantVoteSelector
from keyhole.selection.distant_index import at_distance
from keyhole.selection.exact import ExactSelector
from keyhole.selection.following import FollowingClusters
from keyhole.selection.hashed import HashSelector
from keyhole.selection.landmarks import LandmarkSelector
from keyhole.selection.narrow import NarrowSelector
from keyhole.selection.product import ProductSelector
from keyhole.selection.shared import SharedPageSelector
from keyhole.selection.statics import StaticSelector
from keyhole.selection.vote import Vote, VoteSelector

__all__ = [
    "BoxSelector",
    "Capturable",
    "CentroidSelector",
    "ClusterSelector",
    "CodedBoxSelector",
    "CodewordSelector",
    "CompressedSelector",
    "DistantVoteSelector",
    "ExactSelector",
    "FollowingClusters",
    "HashSelector",
    "LandmarkSelector",
    "NarrowSelector",
    "ProductSelector",
    "RepresentativeSelector",
    "Selection",
    "Selector",
    "SharedPageSelector",
    "StaticSelector",
    "Step",
    "Vote",
    "VoteSelector",
    "ZoneSelector",
    "at_distance",
]
