"""`keyhole private bench`, in the environment of SPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhole.cli.console import stdout
from keyhole.cli.outputs import check_writable
from keyhole.cli.private import shared

if TYPE_CHECKING:
    from keyhole.private.network import Network
    from keyhole.private.runtime.demo import Benchmark


def bench(
    folder: Annotated[Path, typer.Argument(help="Whose method, and whose heads, are measured.")],
    tokens: Annotated[
        int, typer.Option(min=1, max=1 << 20, help="Tokens of the prompt before the step.")
    ] = 1024,
    heads: Annotated[int | None, typer.Option(min=1, max=1024, help="Query heads.")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, max=1024, help="KV heads.")] = None,
    head_dim: Annotated[int | None, typer.Option(min=1, max=4096, help="Head size.")] = None,
    protocol: shared.Protocol = "aby3",
    network: shared.NetworkName = "loopback",
    timeout: shared.Timeout = 60.0,
    parallel: shared.Parallel = False,
    operations: Annotated[
        bool, typer.Option("--operations", help="Also print what each operation sent.")
    ] = False,
    json_: shared.Json = None,
) -> None:
    """Count bytes, messages and seconds of one layer's decode attention: dense, and by the folder's
    method; with what the cost model says of each."""
    shared.check_environment()
    check_writable(json_, "--json")
    from keyhole.private import cost, files
    from keyhole.private.network import network_of
    from keyhole.private.runtime.demo import benched
    from keyhole.private.settings import Settings, SettingsError

    found, link = files.read_run(folder), network_of(network)
    queries, pairs = heads or found.shape.heads, kv_heads or found.shape.kv_heads
    if queries % pairs:
        raise SettingsError(f"{queries} query heads are not a multiple of {pairs} KV heads; give --kv-heads")
    shape = cost.Heads(pairs, queries // pairs, head_dim or found.shape.head_dim)
    table = shared.table(
        "method", "kept", "read by", "MB", "model", "messages", "model", "s", "model", "error"
    )
    rows = []
    for settings in (Settings(), found.settings):
        made = benched(shape, settings, tokens, protocol, network, timeout, parallel=parallel)
        rows.append(_row(made, link))
        table.add_row(*_cells(rows[-1]))
        if operations:
            shared.print_trace(made.trace)
    stdout().print(table)
    shared.write_json(json_, {"network": network, "protocol": protocol, "tokens": tokens, "rows": rows})


def _row(made: Benchmark, link: Network) -> dict[str, Any]:
    """Bytes of all parties, messages of one."""
    layer, predicted = made.layer, made.predicted
    return {
        "method": layer.settings.method,
        "kept": layer.slots,
        "gather": layer.gather,
        "bytes": made.bytes,
        "predicted": predicted and predicted.bytes,
        "messages": made.messages,
        "predicted_messages": predicted and predicted.messages,
        "seconds": made.seconds,
        "predicted_seconds": predicted and link.seconds(predicted),
        "error": made.error,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    sent = [_number(row[name], 1e6, 2) for name in ("bytes", "predicted")]
    messages = [_number(row[name], 1, 0) for name in ("messages", "predicted_messages")]
    seconds = [_number(row[name], 1, 3) for name in ("seconds", "predicted_seconds")]
    first = [row["method"], str(row["kept"]), row["gather"]]
    return [*first, *sent, *messages, *seconds, f"{row['error']:.1e}"]


def _number(value: float | None, unit: float, digits: int) -> str:
    return "-" if value is None else f"{value / unit:.{digits}f}"
