"""What a step does not read, estimated from summaries in place of being left out."""

from keyhole.selection.tail.clusters import Clusters
from keyhole.selection.tail.estimate import Known, tail_part
from keyhole.selection.tail.selector import TailSelector, known_tokens

__all__ = ["Clusters", "Known", "TailSelector", "known_tokens", "tail_part"]
