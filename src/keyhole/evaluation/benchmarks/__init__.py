"""Benchmarks of the field, on files in their own formats, and the run that they share."""

from keyhole.evaluation.benchmarks.base import Benchmark, Sample, Turn
from keyhole.evaluation.benchmarks.evaluate import Result, Settings, evaluate, prepare
from keyhole.evaluation.benchmarks.registry import BENCHMARKS
from keyhole.evaluation.benchmarks.summary import Line, summarise

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Line",
    "Result",
    "Sample",
    "Settings",
    "Turn",
    "evaluate",
    "prepare",
    "summarise",
]
