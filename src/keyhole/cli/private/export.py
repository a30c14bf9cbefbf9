"""`keyhole private export`, in Keyhole's environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyhole.cli import options
from keyhole.cli.console import progress, stdout
from keyhole.cli.private.shared import NetworkName

Method = Annotated[
    str, typer.Option(help="dense, streamingllm(...) or mpcache(...); see `keyhole methods mpcache`.")
]
Ranking = Annotated[
    str, typer.Option(help='"pairs" opens nothing; "quick" opens comparisons of shuffled scores.')
]
Gather = Annotated[str, typer.Option(help='How a selection is read: "rows", "logits", or "auto" by cost.')]
Tokens = Annotated[
    list[int] | None,
    typer.Option(min=1, max=1 << 20, help="Tokens of each prompt; given several times, prompts take turns."),
]


def export(
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    model: options.Model = None,
    method: Method = "mpcache",
    text: Annotated[str, typer.Option(help="A shipped text, of which prompts are pieces.")] = "opticks",
    prompts: Annotated[int, typer.Option(min=1, max=10_000, help="Number of prompts.")] = 1,
    tokens: Tokens = None,
    new_tokens: Annotated[int, typer.Option(min=1, max=1 << 20, help="Tokens to generate.")] = 4,
    ranking: Ranking = "pairs",
    gather: Gather = "auto",
    network: NetworkName = "lan",
    plan: Annotated[
        bool, typer.Option(help="Select nothing where that is faster on --network, by the cost model.")
    ] = True,
    quiet: options.Quiet = False,
) -> None:
    """Write a model, a method and prompts for `keyhole private run`, with the tokens that plaintext
    decoding gives."""
    from keyhole.cli.early import check_method
    from keyhole.cli.inputs import find_source, load
    from keyhole.cli.outputs import check_writable
    from keyhole.core.model_files import split_name
    from keyhole.evaluation.texts import text_named
    from keyhole.private.network import network_of

    check_method(method)
    check_writable(folder / "run.json", "FOLDER")
    text_named(text)
    if split_name(find_source(model))[1] is not None:
        raise ValueError(f"--model {model!r}: packed weights cannot be shared; leave their form out")
    planned = network_of(network) if plan else None
    with progress(quiet) as report:
        report("loading", 0, None)
        from keyhole.private.plain.folder import settings_of
        from keyhole.private.plain.prompts import exported

        settings = settings_of(method, ranking=ranking, gather=gather)
        loaded = load(model)
        report("decoding in the clear", 0, None)
        lengths = tokens or [64]
        says = exported(folder, loaded, method, settings, text, prompts, lengths, new_tokens, planned)
    stdout().print(says, highlight=False)
