"""`keyhole private`: secure computation. `export` needs Keyhole's environment, `run` and `bench` that of
SPU."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from keyhole.cli import options
from keyhole.cli.console import progress, stdout
from keyhole.cli.early import check_method, within
from keyhole.cli.outputs import check_writable
from keyhole.core.files import write_text
from keyhole.core.model_files import split_name

if TYPE_CHECKING:
    from keyhole.private.runtime.trace import Trace

app = typer.Typer(
    name="private",
    no_args_is_help=True,
    help="Decoding under secure multi-party computation (SPU): secret prompt, secret weights, open tokens.",
)

Protocol = Annotated[str, typer.Option(help="aby3: three parties, of which no two collude.")]
NetworkName = Annotated[
    str, typer.Option("--network", help="loopback; lan (0.4 ms, 3 Gbps) or wan (10 ms, 400 Mbps), emulated.")
]
Timeout = Annotated[
    float,
    typer.Option(
        callback=within(1, 3600), help="Seconds after which a party that says nothing counts as gone."
    ),
]
Method = Annotated[
    str, typer.Option(help="dense, streamingllm(...) or mpcache(...); see `keyhole methods mpcache`.")
]
Ranking = Annotated[
    str, typer.Option(help='"pairs" opens nothing; "quick" opens comparisons of shuffled scores.')
]
Gather = Annotated[str, typer.Option(help='How a selection is read: "rows", "logits", or "auto" by cost.')]
Parallel = Annotated[
    bool, typer.Option("--parallel", help="Let the messages of heads overlap: for slow networks.")
]


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    model: options.Model = None,
    method: Method = "mpcache",
    text: Annotated[str, typer.Option(help="A shipped text, of which prompts are pieces.")] = "opticks",
    prompts: Annotated[int, typer.Option(min=1, max=10_000, help="Number of prompts.")] = 1,
    tokens: Annotated[int, typer.Option(min=1, max=1 << 20, help="Tokens of each prompt.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=1, max=1 << 20, help="Tokens to generate.")] = 4,
    ranking: Ranking = "pairs",
    gather: Gather = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Write a model, a method and prompts for `keyhole private run`, with the tokens that plaintext
    decoding gives."""
    from keyhole.cli.inputs import find_source, load
    from keyhole.evaluation.texts import text_named

    check_method(method)
    check_writable(folder / "run.json", "FOLDER")
    text_named(text)
    if split_name(find_source(model))[1] is not None:
        raise ValueError(f"--model {model!r}: packed weights cannot be shared; leave their form out")
    with progress(quiet) as report:
        report("loading", 0, None)
        from keyhole.private.plain.folder import settings_of
        from keyhole.private.plain.prompts import exported

        settings = settings_of(method, ranking=ranking, gather=gather)
        loaded = load(model)
        report("decoding in the clear", 0, None)
        says = exported(folder, loaded, method, settings, text, prompts, tokens, new_tokens)
    stdout().print(says, highlight=False)


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(help="What `keyhole private export` wrote.")],
    protocol: Protocol = "aby3",
    prompts: Annotated[int | None, typer.Option(min=1, help="Answer the first so many prompts.")] = None,
    network: NetworkName = "loopback",
    timeout: Timeout = 60.0,
    parallel: Parallel = False,
    json_: Annotated[Path | None, typer.Option("--json", help="Also write results to this file.")] = None,
) -> None:
    """Answer the prompts of a folder, each party a process of its own that reads only its own part."""
    _check_environment()
    check_writable(json_, "--json")
    from keyhole.private.runtime.demo import answered

    results, trace = answered(folder, protocol, prompts, network, timeout, parallel=parallel)
    table = _table("prompt", "opened", "plaintext", "least margin", "first token s", "others s")
    for place, result in enumerate(results):
        numbers = (f"{number:.2f}" for number in (result.margin, *result.seconds))
        table.add_row(str(place), _ids(result.tokens), _ids(result.expected), *numbers)
    stdout().print(table)
    same = sum(result.tokens == result.expected for result in results)
    stdout().print(f"{same} of {len(results)} answers are those of plaintext decoding", highlight=False)
    _print_trace(trace)
    _write(json_, {"results": [result._asdict() for result in results], **_sums(trace)})


@app.command()
def bench(
    folder: Annotated[Path, typer.Argument(help="Whose method, and whose heads, are measured.")],
    tokens: Annotated[
        int, typer.Option(min=1, max=1 << 20, help="Tokens of the prompt before the step.")
    ] = 1024,
    heads: Annotated[int | None, typer.Option(min=1, max=1024, help="Query heads.")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, max=1024, help="KV heads.")] = None,
    head_dim: Annotated[int | None, typer.Option(min=1, max=4096, help="Head size.")] = None,
    protocol: Protocol = "aby3",
    network: NetworkName = "loopback",
    timeout: Timeout = 60.0,
    parallel: Parallel = False,
    operations: Annotated[
        bool, typer.Option("--operations", help="Also print what each operation sent.")
    ] = False,
    json_: Annotated[Path | None, typer.Option("--json", help="Also write results to this file.")] = None,
) -> None:
    """Count bytes, messages and seconds of one layer's decode attention: dense, and by the folder's
    method."""
    _check_environment()
    check_writable(json_, "--json")
    from keyhole.private import cost, files
    from keyhole.private.runtime.demo import benched
    from keyhole.private.settings import Settings, SettingsError

    found = files.read_run(folder)
    queries, pairs = heads or found.shape.heads, kv_heads or found.shape.kv_heads
    if queries % pairs:
        raise SettingsError(f"{queries} query heads are not a multiple of {pairs} KV heads; give --kv-heads")
    shape = cost.Heads(pairs, queries // pairs, head_dim or found.shape.head_dim)
    table = _table("method", "kept", "read by", "MB", "model", "messages", "s", "error")
    rows = []
    for settings in (Settings(), found.settings):
        made = benched(shape, settings, tokens, protocol, network, timeout, parallel=parallel)
        model = f"{made.layer.predicted / 1e6:.2f}"
        shown = (
            f"{made.bytes / 1e6:.2f}",
            model,
            str(made.messages),
            f"{made.seconds:.3f}",
            f"{made.error:.1e}",
        )
        table.add_row(settings.method, str(made.layer.slots), made.layer.gather, *shown)
        rows.append(
            {
                "method": settings.method,
                "kept": made.layer.slots,
                "seconds": made.seconds,
                "error": made.error,
            }
        )
        rows[-1] |= {"predicted": made.layer.predicted, "bytes": made.bytes, "messages": made.messages}
        if operations:
            _print_trace(made.trace)
    stdout().print(table)
    _write(json_, {"network": network, "protocol": protocol, "tokens": tokens, "rows": rows})


def _check_environment() -> None:
    if find_spec("spu") is None:
        raise ValueError(
            "secure computation needs the package spu, which pins other versions than Keyhole's "
            "environment has; "
            "make it one of its own with `make private`, and run this there"
        )


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left")
    return table


def _ids(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


def _print_trace(trace: Trace) -> None:
    """By operation, of all parties and runs."""
    table = _table("operation", "runs", "MB", "messages", "seconds")
    for name, spent in sorted(trace.operations.items(), key=lambda item: -item[1].bytes):
        if spent.bytes:
            cells = (f"{spent.bytes / 1e6:.3f}", str(spent.messages), f"{spent.seconds:.2f}")
            table.add_row(name, str(spent.runs), *cells)
    stdout().print(table)
    opened = ", ".join(f"{name} ({runs})" for name, runs in trace.opened.items()) or "none"
    stdout().print(
        f"{trace.bytes / 1e6:.2f} MB in {trace.messages} messages, all parties; values opened by "
        f"programs: {opened}",
        highlight=False,
    )


def _sums(trace: Trace) -> dict[str, Any]:
    operations = {name: spent._asdict() for name, spent in trace.operations.items()}
    return {
        "bytes": trace.bytes,
        "messages": trace.messages,
        "opened": trace.opened,
        "operations": operations,
    }


def _write(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        write_text(path, json.dumps(result, indent=1) + "\n")
