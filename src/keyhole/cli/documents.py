"""`keyhole documents` and `keyhole remove`. None of it imports torch."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from keyhole.cli import asking
from keyhole.cli.console import progress, stderr, stdout
from keyhole.cli.errors import FAILED

if TYPE_CHECKING:
    from keyhole.documents.store import Document, Store

app = typer.Typer(name="documents", invoke_without_command=True)
_AGES = ((86400, "d"), (3600, "h"), (60, "min"))


@app.callback()
def documents(
    context: typer.Context,
    store: asking.Where = None,
    quota: asking.Quota = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the documents: sizes, hits, and what they cost to make."""
    context.obj = (store, quota)
    if context.invoked_subcommand is not None:
        return
    held = asking.store_at(store, quota)
    found = held.documents()
    if as_json:
        typer.echo(json.dumps([_facts(one) for one in found], indent=2))
    else:
        _print(held, found)


@app.command()
def verify(
    context: typer.Context,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged; adding the document again reads that.")
    ] = False,
) -> None:
    """Read every stored byte and compare it with what was written. Exit code 1 if anything is damaged."""
    with progress(quiet=False) as bar:
        report = asking.store_at(*context.obj).verify(
            repair=repair, progress=lambda done, total: bar("verifying", done, total)
        )
    for damage in report.damaged:
        of = f" (of {', '.join(damage.documents)})" if damage.documents else ""
        stderr().print(f"damaged: {damage.path}: {damage.what}{of}", highlight=False, markup=False)
    what = "clean" if report.clean else f"{len(report.damaged)} damaged" + (", removed" if repair else "")
    typer.echo(f"{report.entries} files, {_amount(report.nbytes)}: {what}")
    if not report.clean and not repair:
        raise typer.Exit(FAILED)


@app.command()
def gc(context: typer.Context) -> None:
    """Remove what no document needs: expired documents, left-over files."""
    found = asking.store_at(*context.obj).gc()
    gone = f"; documents gone: {', '.join(found.documents)}" if found.documents else ""
    typer.echo(f"{found.files} files removed, {_amount(found.nbytes)} freed{gone}")


def remove(
    name: Annotated[str, typer.Argument(help="Name of the document.")], store: asking.Where = None
) -> None:
    """Forget a document. What it shares with others stays."""
    typer.echo(f"{_amount(asking.store_at(store).remove(name))} freed")


def _print(store: Store, found: list[Document]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("name", "tokens", "size", "shared", "hits", "used", "cost to make", "method", "model"):
        table.add_column(name, justify="left" if name in ("name", "method", "model") else "right")
    for one in found:
        stored = "" if one.finished else f" ({one.stored / len(one.tokens):.0%} read)"
        pin = " (pinned)" if one.pinned else ""
        table.add_row(
            *(one.name + pin, f"{len(one.tokens):,}{stored}", _amount(one.nbytes), _amount(one.shared)),
            *(str(one.hits), _age(time.time() - one.used), f"{one.seconds:.1f} s", one.method),
            one.model or "embedded",
        )
    if found:
        stdout().print(table)
    stats = store.stats()
    held = f"{_amount(stats.used)} of {_amount(stats.quota)} used"
    saved = stats.unshared - stats.entries
    shared = f", {_amount(saved)} saved by sharing" if saved > 0 else ""
    documents = f"{stats.documents} document{'s' * (stats.documents != 1)}"
    typer.echo(f"{documents} in {store.path}: {held}{shared}")


def _facts(one: Document) -> dict[str, object]:
    plain = ("name", "method", "model", "source", "created", "used", "hits", "seconds", "nbytes", "shared")
    held: dict[str, object] = {
        name: getattr(one, name) for name in (*plain, "pinned", "ttl", "stored", "finished")
    }
    return held | {"tokens": len(one.tokens)}


def _amount(nbytes: int) -> str:
    from keyhole.cli.table import amount

    return amount(nbytes)


def _age(seconds: float) -> str:
    for unit, name in _AGES:
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name} ago"
    return "now"
