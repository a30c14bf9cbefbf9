"""Models in another form, kept as directories of the user's cache.

A directory is there whole or not at all. Its name contains what it was made from, so that another file, even
of the same name, is another directory.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import platformdirs
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keyhole.core.costs.places import HOME
from keyhole.core.files import PARTIAL, locked, sync

_PATIENCE = 900.0  # seconds to wait for a process that converts the same file


class Loaded(NamedTuple):
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


Make = Callable[[], Loaded]
Write = Callable[[PreTrainedModel, Path], object]


class ModelNotKept(UserWarning):
    """A converted model could not be kept, with the reason."""


def kept(folder: Path, source: Path | str, make: Make, write: Write) -> Path | Loaded:
    """The directory of a converted model; the model itself, with a warning, where none can be kept.

    Args:
        source: what it is converted from, a path or a name on the hub.
        make: converts it, called by one process at a time.
        write: writes the model, but not its tokenizer, into a directory.

    Raises:
        What `make` raises.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock"), patience=_PATIENCE):
            return folder if folder.is_dir() else _convert(folder, source, make, write)
    except (OSError, TimeoutError) as error:
        if isinstance(source, Path) and not source.exists():
            raise
        return _unkept(make(), folder, error)


def models_directory() -> Path:
    """Where converted models are kept: below KEYHOLE_HOME, or in the system's place for caches."""
    named = os.environ.get(HOME)
    home = Path(named).expanduser() if named else platformdirs.user_cache_path("keyhole", appauthor=False)
    return home / "models"


def _convert(folder: Path, source: Path | str, make: Make, write: Write) -> Path | Loaded:
    loaded = make()
    partial = folder.with_name(f"{PARTIAL}{folder.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        _check_room(loaded.model, folder.parent)
        write(loaded.model, partial)
        loaded.tokenizer.save_pretrained(partial)
        origin = {"converted_from": Path(source).name, "key": folder.name}
        (partial / "keyhole.json").write_text(json.dumps(origin) + "\n", encoding="utf-8")
        for file in (*partial.iterdir(), partial):
            sync(file)
        partial.replace(folder)
        sync(folder.parent)
    except Exception as error:  # safetensors has its own error for a full disk
        return _unkept(loaded, folder, error)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _check_room(model: PreTrainedModel, where: Path) -> None:
    size, free = model.get_memory_footprint(), shutil.disk_usage(where).free
    if free < 2 * size:
        raise OSError(f"it takes {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free")


def _unkept(loaded: Loaded, folder: Path, error: Exception) -> Loaded:
    warnings.warn(
        f"the converted model could not be kept at {str(folder)!r}, so it is converted at each use: {error}; "
        f"free space there, or name another place with {HOME}",
        ModelNotKept,
        stacklevel=2,
    )
    return loaded
