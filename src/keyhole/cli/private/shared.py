"""Options and tables that the commands of `keyhole private` have in common."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from keyhole.cli.console import stdout
from keyhole.cli.early import within
from keyhole.core.files import write_text

if TYPE_CHECKING:
    from keyhole.private.runtime.trace import Trace

Protocol = Annotated[
    str, typer.Option(help="aby3: three parties, of which no two collude; cheetah: client and server alone.")
]
NetworkName = Annotated[
    str,
    typer.Option(
        "--network",
        help="loopback; lan (0.4 ms one way, 3 Gbps), wan (10 ms, 400 Mbps) or MILLISECONDS,MEGABITS.",
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        callback=within(1, 3600), help="Seconds after which a party that says nothing counts as gone."
    ),
]
Parallel = Annotated[
    bool, typer.Option("--parallel", help="Let the messages of heads overlap: for slow networks.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Also write results to this file.")]


def check_environment() -> None:
    if find_spec("spu") is None:
        raise ValueError(
            "secure computation needs the package spu, which pins other versions than Keyhole's "
            "environment has; make it one of its own with `make private`, and run this there"
        )


def table(*columns: str) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(columns):
        made.add_column(name, justify="right" if place else "left")
    return made


def print_trace(trace: Trace) -> None:
    """By operation, of all parties and runs."""
    rows = table("operation", "runs", "MB", "messages", "seconds")
    for name, spent in sorted(trace.operations.items(), key=lambda item: -item[1].bytes):
        if spent.bytes:
            cells = (f"{spent.bytes / 1e6:.3f}", str(spent.messages), f"{spent.seconds:.2f}")
            rows.add_row(name, str(spent.runs), *cells)
    stdout().print(rows)
    opened = ", ".join(f"{name} ({runs})" for name, runs in trace.opened.items()) or "none"
    stdout().print(
        f"{trace.bytes / 1e6:.2f} MB in {trace.messages} messages, all parties; values opened by "
        f"programs: {opened}",
        highlight=False,
    )


def sums(trace: Trace) -> dict[str, Any]:
    operations = {name: spent._asdict() for name, spent in trace.operations.items()}
    opened = {"opened": trace.opened, "operations": operations}
    return {"bytes": trace.bytes, "messages": trace.messages, **opened}


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        write_text(path, json.dumps(result, indent=1) + "\n")
