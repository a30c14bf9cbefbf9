"""`keyhole private run` and `check`, in the environment of SPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyhole.cli import options
from keyhole.cli.console import progress, stdout
from keyhole.cli.early import within
from keyhole.cli.outputs import check_writable
from keyhole.cli.private import shared

Folder = Annotated[Path, typer.Argument(help="What `keyhole private export` wrote.")]


def run(
    folder: Folder,
    protocol: shared.Protocol = "aby3",
    prompts: Annotated[int | None, typer.Option(min=1, help="Answer the first so many prompts.")] = None,
    network: shared.NetworkName = "loopback",
    timeout: shared.Timeout = 60.0,
    parallel: shared.Parallel = False,
    json_: shared.Json = None,
) -> None:
    """Answer the prompts of a folder, each party a process of its own that reads only its own part."""
    shared.check_environment()
    check_writable(json_, "--json")
    from keyhole.private.runtime.demo import answered

    results, trace = answered(folder, protocol, prompts, network, timeout, parallel=parallel)
    table = shared.table("prompt", "opened", "plaintext", "least margin", "first token s", "others s")
    for place, result in enumerate(results):
        numbers = (f"{number:.2f}" for number in (result.margin, *result.seconds))
        table.add_row(str(place), _ids(result.tokens), _ids(result.expected), *numbers)
    stdout().print(table)
    same = sum(result.tokens == result.expected for result in results)
    stdout().print(f"{same} of {len(results)} answers are those of plaintext decoding", highlight=False)
    shared.print_trace(trace)
    shared.write_json(json_, {"results": [result._asdict() for result in results], **shared.sums(trace)})


def check(
    folder: Folder,
    results: Annotated[Path, typer.Option(help="JSON lines, which another call continues.")],
    protocol: shared.Protocol = "aby3",
    minutes: Annotated[
        float, typer.Option(callback=within(0, 1e6), help="Begin no prompt after so many minutes.")
    ] = 1e6,
    quiet: options.Quiet = False,
) -> None:
    """Compare all prompts of a folder with plaintext decoding, with all parties in this process."""
    shared.check_environment()
    check_writable(results, "--results")
    from keyhole.private.runtime.check import NEAR, answer_all

    with progress(quiet) as report:
        made = answer_all(
            folder, results, protocol, minutes * 60, lambda done, count: report("prompts", done, count)
        )
    stdout().print(
        f"{made.same} of {made.same + made.near + made.wrong} answers ({made.tokens} tokens, least margin "
        f"{made.margin:.3f}) are those of plaintext decoding; {made.near} differ where two logits are within "
        f"{NEAR}, {made.wrong} elsewhere",
        highlight=False,
    )
    if made.wrong:
        raise typer.Exit(1)


def _ids(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))
