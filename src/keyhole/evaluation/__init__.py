"""What methods read, keep, cost and get right on long-context tasks."""

from keyhole.evaluation.comparison import compare
from keyhole.evaluation.haystack import Haystack
from keyhole.evaluation.rows import Row
from keyhole.evaluation.tasks import TASKS, Sample, Task, score

__all__ = ["TASKS", "Haystack", "Row", "Sample", "Task", "compare", "score"]
