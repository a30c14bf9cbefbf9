"""`keyhole tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyhole.cli.options import Quiet

if TYPE_CHECKING:
    import torch

    from keyhole.core.costs import CostTable

_SHOWN = ("Llama-3.2-1B", "Llama-3.1-8B")  # shapes whose lengths are shown, in bfloat16


def tune(
    device: Annotated[str, typer.Option(help="What to measure: cpu or cuda.")] = "cpu",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure and show, without writing anything.")
    ] = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="Remove the tuned constants instead of measuring.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write the constants to this file instead of installing them.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure decode steps on this machine, to calibrate `dense_below=auto`.

    Takes some minutes. Without it, Keyhole uses the constants it is shipped with.
    """
    from keyhole.cli.console import stderr

    _check_together(reset, dry_run, output)
    if reset:
        from keyhole.tuning.tune import reset as remove

        removed = remove()
        for path in removed:
            stderr().print(f"removed {path}", highlight=False, markup=False)
        if not removed and not quiet:
            stderr().print("there are no tuned constants; the shipped ones are in use")
        return
    from keyhole.cli.outputs import check_writable
    from keyhole.core.costs import user_file

    if not dry_run:
        check_writable(output or user_file("cpu"), "--output" if output else "cost constants (KEYHOLE_HOME)")
    kept = _measure(device, None if dry_run else output, dry_run, quiet)
    if kept is not None and not quiet:
        stderr().print(f"written to {kept}", highlight=False, markup=False)


def _check_together(reset: bool, dry_run: bool, output: Path | None) -> None:
    """Raise ValueError for options of which one would not be done."""
    given = {"--reset": reset, "--dry-run": dry_run, "--output": output is not None}
    named = [name for name, there in given.items() if there]
    if len(named) > 1:
        raise ValueError(f"{named[0]} and {named[1]} do not go together; give one of {', '.join(given)}")


def _measure(device: str, output: Path | None, dry_run: bool, quiet: bool) -> Path | None:
    from keyhole.cli.console import progress
    from keyhole.tuning import tune as tuning

    on = _device(device)
    if not dry_run:
        _check_place(on, output)
    with progress(quiet) as report:
        found, points = tuning.tune(on, command=_command(device, output), progress=report)
    _show(found, on)
    return None if dry_run else tuning.keep(found, points, output)


def _check_place(device: torch.device, output: Path | None) -> None:
    """See that constants can be kept before minutes are spent on measuring them."""
    from keyhole.cli.outputs import check_writable
    from keyhole.core.costs import user_file
    from keyhole.core.costs.places import HOME
    from keyhole.methods.pays import machine_of

    if output is None:
        check_writable(user_file(machine_of(device)), f"{HOME}:")
    else:
        check_writable(output, "--output")


def _command(device: str, output: Path | None) -> str:
    return f"keyhole tune --device {device}" + (" --output FILE" if output else "")


def _device(named: str) -> torch.device:
    import torch

    if named not in ("cpu", "cuda"):
        raise ValueError(f"--device {named!r} is not one of cpu, cuda")
    return torch.device(named)


def _show(found: CostTable, device: torch.device) -> None:
    """Shipped and measured, side by side: what a step costs beside its work, and where selecting pays."""
    from rich import box
    from rich.table import Table

    from keyhole.cli.console import stdout
    from keyhole.core.costs.places import shipped_file
    from keyhole.core.costs.table import read_table
    from keyhole.methods.pays import machine_of

    tables = read_table(shipped_file(machine_of(device)), tuned=False), found
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("method", "overhead, µs", *(f"{shape} pays from" for shape in _SHOWN)):
        shown.add_column(f"{title}\nshipped, measured" if title != "method" else title)
    for name in found.rates["bfloat16"]:
        overheads = ", ".join(f"{table.of('bfloat16', name).overhead:,.0f}" for table in tables)
        shown.add_row(name, overheads, *(_lengths(name, shape, tables) for shape in _SHOWN))
    stdout().print(shown)


def _lengths(name: str, shape: str, tables: tuple[CostTable, ...]) -> str:
    import torch

    from keyhole.bench.shapes import shape_named
    from keyhole.core.costs import DENSE, Heads
    from keyhole.methods import METHODS
    from keyhole.methods.pays import said, solve

    if name == DENSE:
        return ""
    sizes = shape_named(shape).attention
    heads = Heads(*sizes, sizes.head_dim, torch.bfloat16)
    threads = torch.get_num_threads()
    return ", ".join(said(solve(METHODS[name](), table, heads, threads).tokens) for table in tables)  # type: ignore[arg-type]
