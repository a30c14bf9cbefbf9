"""How far a method's next-token distribution is from full attention's, on real text."""

from keyhole.evaluation.divergence.measure import TASK, divergence
from keyhole.evaluation.divergence.passages import Passage, passages
from keyhole.evaluation.divergence.records import merge, read_rows
from keyhole.evaluation.divergence.rows import DivergenceRow, Settings, TextScore

__all__ = [
    "TASK",
    "DivergenceRow",
    "Passage",
    "Settings",
    "TextScore",
    "divergence",
    "merge",
    "passages",
    "read_rows",
]
