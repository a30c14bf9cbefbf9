"""Exact attention: over everything, over a selection, and the merge of parts."""

from keyhole.attention.columns import column_sums
from keyhole.attention.dense import dense_attention
from keyhole.attention.logits import Logits
from keyhole.attention.merge import Part, add_sink_logits, merge
from keyhole.attention.scores import key_logits
from keyhole.attention.selected import attend_slots

__all__ = [
    "Logits",
    "Part",
    "add_sink_logits",
    "attend_slots",
    "column_sums",
    "dense_attention",
    "key_logits",
    "merge",
]
