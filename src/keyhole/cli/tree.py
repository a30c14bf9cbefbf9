"""`keyhole methods --tree`: published systems by what they do, with what serves each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from keyhole.methods.taxonomy import Leaf, System


def print_tree(console: Console) -> None:
    """Print levels, leaves and systems, each system with method strings or the reason why there is none."""
    from keyhole.methods.taxonomy import leaves

    level = ""
    for leaf in leaves():
        if leaf.level != level:
            level = leaf.level
            console.print(f"[bold]{level}[/bold]")
        _print_leaf(console, leaf)


def _print_leaf(console: Console, leaf: Leaf) -> None:
    from rich.padding import Padding

    console.print(
        Padding(f"[bold]{leaf.key}[/bold] {leaf.title}: {leaf.what}", (0, 0, 0, 2)), highlight=False
    )
    for system in leaf.systems:
        console.print(Padding(_told(system), (0, 0, 0, 6)), highlight=False)


def _told(system: System) -> str:
    by = " or ".join(f"[cyan]{spec}[/cyan]" for spec in system.by) or "[dim]no[/dim]"
    return f"{system.name}: {by}" + (f"; {system.why}" if system.why else "")
