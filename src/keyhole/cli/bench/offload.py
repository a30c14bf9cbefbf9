"""`keyhole bench offload`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyhole.cli.bench import options
from keyhole.cli.early import check_method, within
from keyhole.cli.options import Quiet, Threads
from keyhole.cli.outputs import check_writable
from keyhole.core.method_text import read_terms

if TYPE_CHECKING:
    from rich.table import Table

    from keyhole.bench.offload.measure import Offloaded

_SIZES = "sinks=64, window=1024, budget=3008, dense_below=0"
METHODS = [
    "dense",
    f"infllm_v2({_SIZES})",
    f"nosa({_SIZES})",
    f"quest(page=64, {_SIZES})",
    f"shadowkv(outliers=0, {_SIZES})",
]
_READ = 64 + 1024 + 3008


def offload(
    method: options.Methods = METHODS,
    tokens: options.Tokens = 32_768,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, max=256, help="Sequences; may be repeated.", show_default="1"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Decode steps of each method.")] = 1000,
    tier: Annotated[
        str,
        typer.Option(
            help="The slower place: link, host memory behind a link of a given bandwidth, or disk, a file "
            "under TMPDIR that is taken out of the page cache before every step.",
        ),
    ] = "link",
    bandwidth: Annotated[
        float | None,
        typer.Option(callback=within(1e-3, 1e6), help="Bandwidth of the link, in GB/s.", show_default="0.5"),
    ] = None,
    alike: Annotated[
        float, typer.Option(callback=within(0, 1), help="Cosine of a step's query and the one before it.")
    ] = 0.95,
    wait: Annotated[
        bool, typer.Option("--wait", help="Let steps wait for the link, rather than add what it takes.")
    ] = False,
    resident: Annotated[
        int,
        typer.Option(min=0, help="Resident bytes of keys and values of a sequence; 0 for a step's blocks."),
    ] = 0,
    query_heads: options.QueryHeads = 32,
    kv_heads: options.KVHeads = 2,
    head_dim: options.HeadDim = 128,
    dtype: options.Dtype = "bfloat16",
    threads: Threads = None,
    seed: options.Seed = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    quiet: Quiet = False,
) -> None:
    """Decode steps of one layer whose keys and values come from a slower place, with equal resident bytes.

    The place is host memory behind a link of a given bandwidth, which stands for PCIe: the time of a step is
    its CPU time and what its bytes take over the link. Or it is a disk, for which a step waits. Keys, values
    and importance heads are random, and
    queries drift, so that speed and bytes mean something and accuracy does not. Rows of a batch have
    different lengths, from half of the tokens to all. Methods take turns.
    """
    check_writable(json_file, "--json")
    for each in method:
        check_method(each)
        if len(read_terms(each)) != 1:
            raise ValueError(f"--method {each!r} is several methods; give one that places keys and values")
    _check_tier(tier, bandwidth, wait=wait)
    from keyhole.bench.case import Case
    from keyhole.bench.offload.measure import offload as measure
    from keyhole.bench.offload.measure import resident_bytes
    from keyhole.bench.offload.tier import ColdDisk, Link, copying, reading_cold
    from keyhole.cli import console
    from keyhole.tuning.timing import using_threads

    found: list[Offloaded] = []
    with using_threads(threads or 0), console.progress(quiet) as report:
        speed = (copying() if tier == "link" else reading_cold()) / 1e9
        made = ColdDisk if tier == "disk" else partial(Link, (bandwidth or 0.5) * 1e9, wait)
        for rows in batch or [1]:
            case = Case(tokens, query_heads, kv_heads, head_dim, dtype, 0, seed, rows)
            found += measure(
                case,
                method,
                steps=steps,
                alike=alike,
                resident=resident * rows or resident_bytes(case, _READ),
                tier=made,
                progress=lambda doing: report(doing, 0, None),
            )
    console.stdout().print(_table(found))
    if not quiet:
        console.stderr().print(_place(tier, bandwidth or 0.5, speed, wait=wait), highlight=False)
    if json_file is not None:
        from keyhole.core.files import write_text

        rows = [{**one._asdict(), "steps_per_second": one.steps_per_second} for one in found]
        write_text(
            json_file,
            json.dumps(
                {"tier": tier, "bandwidth": bandwidth, "measured": speed, "alike": alike, "rows": rows},
                indent=1,
            ),
        )


def _check_tier(tier: str, bandwidth: float | None, *, wait: bool) -> None:
    if tier not in ("link", "disk"):
        raise ValueError(f"--tier {tier!r} is not one of link, disk")
    if tier == "disk" and (bandwidth is not None or wait):
        raise ValueError(
            "--bandwidth and --wait are for --tier link; a disk has its own bandwidth, and is waited for"
        )


def _place(tier: str, bandwidth: float, speed: float, *, wait: bool) -> str:
    """What the slower place was, in a line."""
    if tier == "disk":
        return (
            f"- the disk reads {speed:.2f} GB/s in pieces of 64 KiB; a step waits for what its "
            "time by the clock is more than that of the CPU"
        )
    how = "waited for" if wait else "added to the CPU time of a step"
    return f"- the link has {bandwidth} GB/s, which is {how}; this machine copies {speed:.1f} GB/s"


def _table(found: list[Offloaded]) -> Table:
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = (
        "", "batch", "tokens", "steps/s", "x first", "ms\nCPU", "ms\nfetching", "of a\nstep",
        "MB fetched\na step", "hits", "gamma", "resident\nMB",
    )  # fmt: skip
    for index, name in enumerate(columns):
        drawn.add_column(name, justify="right" if index else "left")
    for one in found:
        first = next(each for each in found if each.batch == one.batch)
        drawn.add_row(
            one.method.split("(")[0],
            str(one.batch),
            f"{one.shortest}-{one.longest}",
            f"{one.steps_per_second:.1f}",
            f"{one.steps_per_second / first.steps_per_second:.2f}",
            f"{1000 * one.computing / one.steps:.2f}",
            f"{1000 * one.crossing / one.steps:.2f}",
            f"{one.link_share:.0%}",
            f"{one.link_bytes / 1e6:.3f}",
            "" if one.hit_rate is None else f"{one.hit_rate:.1%}",
            "" if one.gamma is None else f"{one.gamma:.3f}",
            f"{one.device_bytes / 1e6:.1f}",
        )
    return drawn
