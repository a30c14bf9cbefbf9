"""Results as rows, and files of them that are written whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from keyhole.core.files import write_whole


@dataclass(frozen=True)
class Row:
    """One candidate against one baseline.

    `ratio` is baseline_ms / ms. Sizes an operation does not have are None. For `gemv`, `tokens` are the rows
    of the matrix, `read_tokens` the active ones and `head_dim` its columns.
    """

    op: str
    method: str
    impl: str
    tokens: int
    query_heads: int | None
    kv_heads: int | None
    head_dim: int | None
    dtype: str
    read_tokens: int
    ms: float
    bytes: int
    bandwidth_share: float
    baseline: str
    baseline_ms: float
    ratio: float
    batch: int = 1


_KEYS = {field.name for field in fields(Row)}


def write_rows(path: Path, rows: list[Row], conditions: dict[str, Any]) -> None:
    """Write rows as a JSON list, and beside it (see `conditions_path`) under which conditions they arose."""
    write_whole(conditions_path(path), json.dumps(conditions, indent=1))
    write_whole(path, json.dumps([asdict(row) for row in rows], indent=1))


def read_rows(path: Path) -> list[Row]:
    """Rows as `write_rows` wrote them.

    Raises:
        ValueError: no such file, or not one of rows.
    """
    held = _read_json(path)
    if not isinstance(held, list) or any(not isinstance(row, dict) or set(row) != _KEYS for row in held):
        raise ValueError(f"{path} does not hold benchmark rows; make it with `keyhole bench ... --json`")
    return [Row(**row) for row in held]


def read_conditions(path: Path) -> dict[str, Any]:
    """The conditions under which the rows of `path` arose.

    Raises:
        ValueError: they are not beside it, or unreadable.
    """
    return _read_json(conditions_path(path))


def conditions_path(path: Path) -> Path:
    """Where machine, versions, date and notes of the rows at `path` are kept."""
    return path.with_name(f"{path.name}.conditions")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"cannot read {path}: {error.strerror}; make it with `keyhole bench ... --json`"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); measure again with --json") from error
