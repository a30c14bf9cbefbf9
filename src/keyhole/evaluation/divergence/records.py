"""Rows in files: read, joined, and told apart from those of other tasks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from keyhole.core.files import write_text
from keyhole.evaluation.divergence.rows import DivergenceRow

_NEAR, _SMALL = 1e-2, 1e-5  # relative and in nats: what rounding in float32 does to a mean of divergences

Records = Sequence[dict[str, Any]]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The rows of all tasks in a file of `keyhole compare --json`.

    Raises:
        ValueError: it cannot be read, or is no such file.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} is not JSON: {error}; give a file of `keyhole compare --json`"
        ) from error
    if not isinstance(held, list) or not all(isinstance(row, dict) and "task" in row for row in held):
        raise ValueError(f"{str(path)!r} holds no rows; give a file of `keyhole compare --json`")
    return held


def read_rows(path: Path) -> list[DivergenceRow]:
    """The rows of divergences in a file; others are left out.

    Raises:
        ValueError: as `read_records`, or a row is damaged.
    """
    try:
        return [DivergenceRow.of(record) for record in read_records(path) if record["task"] == "kl"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a row of {str(path)!r} is damaged: {error!r}; make the file again") from error


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write rows, one a line; the file is the old one or the new one at any time."""
    lines = ",\n".join(json.dumps(record) for record in records)
    write_text(path, f"[\n{lines}\n]\n" if lines else "[]\n")


def merge(parts: Iterable[Sequence[DivergenceRow]]) -> list[DivergenceRow]:
    """The rows of several measurements, those of equal settings side by side, each once.

    Raises:
        ValueError: two rows of one method, budget and settings differ by more than rounding.
    """
    groups: dict[tuple[Any, ...], dict[tuple[str, str], DivergenceRow]] = {}
    for row in (row for part in parts for row in part):
        group = groups.setdefault(row.settings.key, {})
        held = group.setdefault((row.method, row.budget), row)
        if len(row.by_text) > len(held.by_text):
            group[row.method, row.budget] = row
        elif row.complete and not _agree(held, row):
            raise ValueError(
                f"{row.method} {row.budget} is there twice with different results: KL "
                f"{held.summary.kl_mean:.4g} and {row.summary.kl_mean:.4g}; leave out one of the files"
            )
    return [row for group in groups.values() for row in group.values()]


def _agree(one: DivergenceRow, other: DivergenceRow) -> bool:
    a, b = one.summary.kl_mean, other.summary.kl_mean
    return abs(a - b) <= max(_NEAR * max(a, b), _SMALL)
