"""`keyhole add`."""

from __future__ import annotations

from typing import Annotated

import typer

from keyhole.cli import asking, options
from keyhole.cli.console import reading_progress, stdout
from keyhole.cli.early import check_served, within
from keyhole.cli.inputs import find_source
from keyhole.core.model_files import with_weights
from keyhole.documents.paths import name_of
from keyhole.documents.text import check_files


def _hours(value: float | None) -> float | None:
    return None if value is None else within(0, 1e6)(value)


def add(
    files: Annotated[
        list[str],
        typer.Argument(help="Text, Markdown, HTML or PDF; several make one document; - is stdin."),
    ],
    name: asking.Name = None,
    model: options.Model = None,
    weights: options.Weights = None,
    method: Annotated[
        str, typer.Option(help="Method with options, such as pqcache(budget=0.1); see `keyhole methods`.")
    ] = "pqcache",
    kv_dtype: asking.KvDtype = None,
    beyond_range: options.BeyondRange = False,
    pin: Annotated[
        bool | None,
        typer.Option(
            "--pin/--no-pin", help="Whether the document is never evicted.", show_default="as it was"
        ),
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option(callback=_hours, help="Hours after its last use at which it may be removed."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Do not use the model's chat template.")] = False,
    store: asking.Where = None,
    quota: asking.Quota = None,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Read a document into the store, so that questions about it are answered at once, now and later.

    A reading that was interrupted goes on where it stopped when the same is added again.
    """
    check_served(method)
    model = with_weights(model, weights)
    name_of(name, files)
    check_files(files)
    if model is not None:
        find_source(model)
    with asking.resumable("the same command"), reading_progress(quiet) as report:
        report("loading", 0, None)
        asking.set_threads(threads)
        found = asking.library_at(store, quota, quiet=quiet).add(
            files,
            name=name,
            model=model,
            method=method,
            kv_dtype=kv_dtype,
            chat=False if raw else None,
            beyond_range=beyond_range,
            pinned=pin,
            ttl=None if ttl is None else 3600 * ttl,
            progress=report,
        )
    if not quiet:
        from keyhole.cli.table import amount

        took = f"{len(found.tokens):,} tokens, {amount(found.nbytes)}, {found.seconds:.1f} s to make"
        stdout().print(f"{found.name}: {took}", highlight=False, markup=False)
