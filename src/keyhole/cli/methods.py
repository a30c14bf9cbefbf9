"""`keyhole methods`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated

import typer

from keyhole.cli.tree import print_tree

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from keyhole.methods import Method

_QUESTIONS = ("compute", "retain", "place", "select", "activate")
_TABLE_WIDTH = 120  # columns; narrower terminals get a list


def methods(
    json_schema: Annotated[
        bool, typer.Option("--json-schema", help="Print the options of each method as a JSON schema.")
    ] = False,
    tree: Annotated[
        bool,
        typer.Option(
            "--tree", help="Print the survey's tree: what serves each published system, or why not."
        ),
    ] = False,
) -> None:
    """List the methods with their papers and their answers to the five questions."""
    if json_schema and tree:
        raise ValueError("--json-schema and --tree print different things; give one of them")
    if json_schema:
        from keyhole.methods.registry import json_schema as schema

        typer.echo(json.dumps(schema(), indent=2))
        return
    from keyhole.cli.console import stdout

    console = stdout()
    if tree:
        print_tree(console)
        return
    from keyhole.methods import METHODS

    show = _table if console.width >= _TABLE_WIDTH else _list
    show(console, METHODS)


def _table(console: Console, methods: Mapping[str, type[Method]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("method", *_QUESTIONS, "what it does", "paper"):
        table.add_column(name, overflow="fold")
    for name, kind in methods.items():
        table.add_row(name, *answers_of(kind), kind.summary, kind.paper)
    console.print(table)


def _list(console: Console, methods: Mapping[str, type[Method]]) -> None:
    """A paragraph for each method, with the answers that are not those of dense attention."""
    from rich.padding import Padding

    default = answers_of(methods["dense"])
    for name, kind in methods.items():
        own = zip(_QUESTIONS, answers_of(kind), default, strict=True)
        differing = ", ".join(f"{question}: {answer}" for question, answer, plain in own if answer != plain)
        console.print(f"[bold]{name}[/bold] ({kind.paper})", highlight=False)
        text = f"{kind.summary} ({differing})" if differing else kind.summary
        console.print(Padding(text, (0, 0, 0, 4)), highlight=False)


def answers_of(kind: type[Method]) -> tuple[str, ...]:
    """The names of a method's answers to compute, retain, place, select and activate."""
    from keyhole.cache.evicting import EvictingLayer
    from keyhole.core.model_info import ModelInfo
    from keyhole.methods.recipe import alone

    recipe = alone(kind())
    layer = recipe.layers(1)[0]
    scorer = layer.retention.scorer if isinstance(layer, EvictingLayer) else None
    return (
        _name(layer.prefill),
        _name(scorer) if scorer else "everything",
        _name(layer.storage),
        _name(layer.selector) if layer.selector else "everything",
        "channels" if recipe.feedforward(ModelInfo.of(0)) else "everything",
    )


def _name(answer: object) -> str:
    """`ProductSelector` is `product`: the words of the class without those of the question."""
    words = re.findall("[A-Z][a-z0-9]*", type(answer).__name__)
    asked = {"Prefill", "Storage", "Selector", "Scorer"}
    return " ".join(word.lower() for word in words if word not in asked)
