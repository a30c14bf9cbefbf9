"""Codebooks on disk: `codebooks.safetensors`, and `codebooks.json` that says what they are for.

The settings are written last, each file whole under another name and then renamed: a directory with settings
is complete.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from keyhole.selection.codebook import Codebook
from keyhole.setting import Setting

_FORMAT = 1
_TENSORS, _SETTINGS = "codebooks.safetensors", "codebooks.json"


def write_codebooks(
    directory: str | Path, books: dict[int, Codebook], *, model: str, distance: int, **made: Any
) -> None:
    """Write codebooks `[1, Hkv, C, D]` by their layers' places in the model.

    Args:
        model: its fingerprint.
        distance: the constant position of the queries they were fitted for.
        made: what else there is to say about how they were made.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    (target / _SETTINGS).unlink(missing_ok=True)
    tensors = {
        f"{place}.{name}": tensor.contiguous()
        for place, book in books.items()
        for name, tensor in (("points", book.points), ("metric", book.metric))
    }
    partial = target / f"{_TENSORS}.partial"
    save_file(tensors, partial)
    partial.replace(target / _TENSORS)
    settings = {"format": _FORMAT, "model": model, "distance": distance, "layers": sorted(books)} | made
    partial = target / f"{_SETTINGS}.partial"
    partial.write_text(json.dumps(settings, indent=1))
    partial.replace(target / _SETTINGS)


def read_codebooks(directory: str | Path, setting: Setting, distance: int) -> list[Codebook | None]:
    """The codebooks of a setting's layers; without a model the first ones of the file, in order.

    Raises:
        ValueError: there are none, they are damaged, or made for another model or distance.
    """
    source = Path(directory).expanduser()
    settings = _settings(source)
    if setting.fingerprint is not None and settings["model"] != setting.fingerprint():
        raise ValueError(
            f"{source}: the codebooks belong to another model; make some with `keyhole calibrate a2ats`"
        )
    if settings["distance"] != distance:
        raise ValueError(
            f"{source}: the codebooks were made for distance={settings['distance']}, not {distance}; "
            "give that distance, or calibrate again with --distance"
        )
    held = _books(source, _written(source / _TENSORS))
    places = sorted(held)[: len(setting)] if setting.fingerprint is None else setting.layers
    missing = [place for place in places if place not in held]
    if missing or len(places) != len(setting):
        raise ValueError(f"{source}: there are codebooks of layers {sorted(held)}, not of {setting.layers}")
    return [held[place] for place in places]


def _settings(source: Path) -> dict[str, Any]:
    try:
        settings = json.loads((source / _SETTINGS).read_text())
    except OSError as error:
        raise ValueError(
            f"there are no codebooks in {str(source)!r}; make some with `keyhole calibrate a2ats`"
        ) from error
    except ValueError as error:
        raise ValueError(f"{source}: {_SETTINGS} is damaged ({error}); calibrate again") from error
    if settings["format"] != _FORMAT:
        raise ValueError(f"{source}: format {settings['format']} is not {_FORMAT}; calibrate again")
    return settings


def _written(tensors: Path) -> int:
    """When the file was written."""
    try:
        return tensors.stat().st_mtime_ns
    except FileNotFoundError as error:
        raise ValueError(f"{tensors} is gone; calibrate again") from error


@lru_cache(maxsize=2)  # every request asks for them
def _books(source: Path, _written: int) -> dict[int, Codebook]:
    try:
        tensors = load_file(source / _TENSORS)
    except SafetensorError as error:
        raise ValueError(f"{source}: {_TENSORS} is damaged ({error}); calibrate again") from error
    places = {int(name.split(".")[0]) for name in tensors}
    return {
        place: Codebook.of(tensors[f"{place}.points"], tensors[f"{place}.metric"]) for place in sorted(places)
    }
