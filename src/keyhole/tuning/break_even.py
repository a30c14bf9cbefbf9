"""The context length from which a method pays on this machine: measured once, then remembered.

Below it Keyhole reads everything by the folded dense call: nobody is slower for having switched it on.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch

from keyhole import __version__
from keyhole.core.break_even import BreakEven
from keyhole.core.files import write_text
from keyhole.methods.base import Method
from keyhole.methods.recipe import Recipe
from keyhole.tuning.crossing import NEVER, crossing
from keyhole.tuning.machine import cpu_model, isa_level
from keyhole.tuning.search import SECONDS, Heads, Progress, search
from keyhole.tuning.timing import using_threads

__all__ = ["NEVER", "break_even", "break_evens", "cache_file"]

_BATCH = " | batch "  # in keys, behind all else

_log = logging.getLogger(__name__)

_measured: dict[str, int] = {}  # of this process, and what the file held when it was last looked into


def break_even(
    recipe: Recipe | Method | str,
    *,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    batch: int = 1,
    threads: int = 0,
    force: bool = False,
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> int:
    """Tokens from which one layer's decode step by this method is faster than the folded dense call.

    0 for methods that select nothing, `NEVER` where no such length is in sight. The first call for a method,
    shape and machine measures for a few seconds; the answer is kept in `cache_file()`.

    Args:
        value_dim: head size of the values, where it is not `head_dim`.
        batch: sequences that a step serves.
        threads: to compute with; 0 for torch's present info.
        force: measure again.
        seconds: no further length is begun after that; on a busy machine more may be needed.
        progress: told how many lengths of how many are done.

    Raises:
        ValueError: sizes out of range.
    """
    recipe = Recipe.parse(recipe)
    sizes = query_heads, kv_heads, head_dim, value_dim or head_dim
    heads = Heads(*sizes, dtype, torch.device(device), batch)
    if recipe.retrieval is None:
        return 0
    if recipe.retrieval.pays_from is not None:
        return recipe.retrieval.pays_from
    with using_threads(threads):
        key = _key(recipe, heads)
        known = None if force else _known(key)
        if known is not None:
            _measured[key] = known
            return known
        found = search(recipe, heads, seconds=seconds, progress=progress)
    _measured[key] = crossing(found.points)
    if found.settled:
        _write(key, _measured[key])
    else:
        _log.warning(
            "the machine is too busy to settle from which length on %s pays; this process goes by a guess. "
            "`keyhole bench calibrate` measures again",
            recipe,
        )
    return _measured[key]


def break_evens(recipe: Recipe | Method | str, heads: Heads) -> BreakEven:
    """As `break_even` for these heads, with the lengths of larger batches that were measured before."""
    recipe = Recipe.parse(recipe)
    one, start = break_even(recipe, **asdict(heads)), _key(recipe, heads) + _BATCH
    ends = ((key.removeprefix(start), tokens) for key, tokens in _measured.items() if key.startswith(start))
    return BreakEven(one, tuple(sorted((int(end), tokens) for end, tokens in ends if end.isdigit())))


def cache_file() -> Path:
    """Where break-even lengths are kept: in the user's cache directory."""
    named = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    return (Path(named) if named else Path.home() / ".cache") / "keyhole" / "calibration.json"


def _key(recipe: Recipe, heads: Heads) -> str:
    """All that the answer depends on."""
    machine = _gpu(heads.device) if heads.device.type == "cuda" else cpu_model()
    parts = (
        machine,
        f"{torch.get_num_threads()} threads",
        f"level {isa_level()}",
        str(recipe),
        f"heads {heads.query_heads}/{heads.kv_heads} of {heads.head_dim}/{heads.value_dim}",
        str(heads.dtype).removeprefix("torch."),
        f"keyhole {__version__}",
    )
    return " | ".join(parts) + (f"{_BATCH}{heads.batch}" if heads.batch > 1 else "")


@cache
def _gpu(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def _known(key: str) -> int | None:
    if key not in _measured:
        _measured.update(_read(cache_file()) | _measured)
    return _measured.get(key)


def _write(key: str, tokens: int) -> None:
    path = cache_file()
    try:
        write_text(path, json.dumps(_read(path) | {key: tokens}, indent=1, sort_keys=True))
    except OSError as error:
        _log.warning(
            "cannot keep the break-even length in %s (%s); it is measured again next time", path, error
        )


def _read(path: Path) -> dict[str, int]:
    """What the file holds; nothing if there is none, or none that can be read."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return {key: tokens for key, tokens in held.items() if type(tokens) is int and tokens >= 0}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        _log.warning("cannot read break-even lengths from %s (%s); they are measured again", path, error)
        return {}
