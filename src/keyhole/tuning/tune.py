"""Measures this machine, and keeps the constants in the user's directory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from keyhole.core.costs import CostTable, user_file
from keyhole.core.costs.table import MACHINES, forget
from keyhole.core.files import write_whole
from keyhole.methods.pays import machine_of
from keyhole.tuning.fit import fit
from keyhole.tuning.machine import describe
from keyhole.tuning.measure import Point, Progress, measure, measured_methods
from keyhole.tuning.timing import using_threads


def tune(
    device: torch.device, *, methods: Sequence[str] = (), command: str = "", progress: Progress | None = None
) -> tuple[CostTable, list[Point]]:
    """Constants for this machine, and the steps they were fitted to. Nothing is written.

    Raises:
        ValueError: no such device.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} is not available; give cpu")
    with using_threads(1):
        points = measure(methods or measured_methods(), device=device, progress=progress)
        about = describe(device)
    about |= {"date": date.today().isoformat(), "command": command, "values": "medians, microseconds"}
    return fit(machine_of(device), points, about), points


def keep(table: CostTable, points: Sequence[Point], path: Path | None = None) -> Path:
    """Write constants where they are used from now on, or elsewhere, with the steps they were fitted to."""
    path = path or user_file(table.machine)
    write_whole(path, table.text(points=[list(point) for point in points]))
    forget()
    return path


def reset() -> list[Path]:
    """Remove the user's constants, and say which; those that are shipped are used from now on."""
    held = [path for path in map(user_file, MACHINES) if path.exists()]
    for path in held:
        path.unlink()
    forget()
    return held
