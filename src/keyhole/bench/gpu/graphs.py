"""What is timed, as a CUDA graph, so that the time of a GPU's work is not that of starting it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from keyhole.tuning.timing import Candidate

_WARM_UPS = 3  # runs in which kernels are compiled and libraries take their workspaces


def graphed(candidate: Candidate, device: torch.device) -> Candidate:
    """The candidate with its run captured; on a CPU as it is. What it does has to be the same each time."""
    return replace(candidate, run=captured_run(candidate.run, device))


def captured_run(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """A run as the replay of a graph."""
    if device.type != "cuda":
        return run
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
