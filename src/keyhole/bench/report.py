"""Files of rows as the Markdown of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keyhole.bench.rows import Row, read_conditions, read_rows

_PREAMBLE = """\
# Benchmarks

Made by `keyhole bench report FILE... > docs/benchmarks.md` from the rows that `keyhole bench OPERATION`
writes with `--json FILE`. Every operation is checked against its reference before it is timed; of a wrong one
nothing is reported.

- **ms** is the median of rounds in which Keyhole and the baselines take turns, each run with cold caches.
- **MiB** is what has to be moved, **share** that amount in that time as a share of the memory bandwidth
  measured between the runs.
- **ratio** is the time of the baseline divided by Keyhole's.
- **sdpa folded** is torch's attention with the query heads of a group as the rows of one call, which reads K
  and V once for each KV head. It is the honest baseline; `enable_gqa` reads them once for each query head.
- **read** are the tokens whose keys and values a step reads beside the first and the newest ones, which are
  always read. For `gemv`, tokens are the rows of the matrix, head size its columns, read the active rows.
"""
_COLUMNS = {
    "method": "---",
    "by": "---",
    "tokens": "---:",
    "heads": "---:",
    "head size": "---:",
    "dtype": "---",
    "read": "---:",
    "ms": "---:",
    "MiB": "---:",
    "share": "---:",
    "baseline": "---",
    "baseline ms": "---:",
    "ratio": "---:",
}


def report(files: Sequence[Path]) -> str:
    """The whole page: a section for each machine, in it one for each file.

    Raises:
        ValueError: a file, or its conditions, is not there, or does not hold rows.
    """
    machines: dict[str, list[str]] = {}
    for file in files:
        conditions = read_conditions(file)
        machines.setdefault(_machine(conditions), []).append(_section(read_rows(file), conditions))
    parts = [_PREAMBLE]
    for machine, sections in machines.items():
        parts += [machine, *sections]
    return "\n".join(parts)


def _machine(conditions: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    cores = f"{conditions['cores']} cores, threads used: {conditions['threads']}"
    kernels = f"native kernels: {conditions['isa_level']}"
    name = f"One {conditions['gpu']}" if "gpu" in conditions else conditions["cpu"]
    return f"## {name}\n\n{cores}, {kernels}, {conditions['system']}; {versions}.\n"


def _section(rows: Sequence[Row], conditions: dict[str, Any]) -> str:
    lines = [f"### `{conditions['command']}`", "", f"Measured on {conditions['date']}.", ""]
    lines += [f"- {note}" for note in conditions["notes"]]
    lines += ["", _line(_COLUMNS), _line(_COLUMNS.values())]
    lines += [_line(_cells(row)) for row in rows]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    heads = "" if row.query_heads is None else f"{row.query_heads}/{row.kv_heads}"
    return [
        f"`{row.method}`",
        row.impl,
        f"{row.tokens:,}" if row.batch == 1 else f"{row.batch} x {row.tokens:,}",
        heads,
        str(row.head_dim),
        row.dtype,
        f"{row.read_tokens:,}",
        f"{row.ms:.3f}",
        f"{row.bytes / 2**20:.1f}",
        f"{row.bandwidth_share:.0%}",
        row.baseline,
        f"{row.baseline_ms:.3f}",
        f"{row.ratio:.2f}x",
    ]


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
