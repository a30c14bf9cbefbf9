"""The benchmarks by name."""

from keyhole.evaluation.benchmarks.babilong import BabiLong
from keyhole.evaluation.benchmarks.base import Benchmark
from keyhole.evaluation.benchmarks.infinitebench import InfiniteBench
from keyhole.evaluation.benchmarks.longbench import LongBench
from keyhole.evaluation.benchmarks.longbench2 import LongBench2
from keyhole.evaluation.benchmarks.needlebench import NeedleBench
from keyhole.evaluation.benchmarks.niah import Needle
from keyhole.evaluation.benchmarks.ruler import Ruler
from keyhole.evaluation.benchmarks.scbench import ScBench

BENCHMARKS: dict[str, type[Benchmark]] = {
    kind.name: kind
    for kind in (Ruler, LongBench, LongBench2, InfiniteBench, NeedleBench, Needle, BabiLong, ScBench)
}
