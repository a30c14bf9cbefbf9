"""`keyhole` and its commands. Their modules import torch only when they run, so that help comes at once."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from keyhole.cli import (
    add,
    ask,
    bench,
    calibrate,
    compare,
    documents,
    eval,
    generate,
    lm_eval,
    methods,
    private,
    serve,
    train,
    tune,
    view,
)
from keyhole.cli.errors import guarded
from keyhole.core.version import __version__


class _Guarded(TyperGroup):
    """Turns what a command raises into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        return guarded(lambda: super(_Guarded, self).invoke(ctx), show_traceback=ctx.params["traceback"])


app = typer.Typer(
    cls=_Guarded,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Long-context inference that computes, keeps and reads only the part of the KV cache that matters.",
    epilog="Exit codes: 0 success, 1 failure, 2 bad usage or input, 130 interrupted.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"keyhole {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
) -> None:
    """The options of `keyhole` itself; `traceback` is read where errors are handled."""


for command in (add.add, ask.ask, ask.chat, documents.remove):
    app.command()(command)
app.add_typer(documents.app)
for command in (
    compare.compare,
    generate.generate,
    methods.methods,
    serve.serve,
    train.train,
    tune.tune,
    view.view,
):
    app.command()(command)
app.command("eval")(eval.eval_)
app.command("lm-eval", context_settings=lm_eval.PASSED_ON)(lm_eval.lm_eval)
app.add_typer(bench.app)
app.add_typer(calibrate.app)
app.add_typer(private.app)


def main() -> None:
    app()
