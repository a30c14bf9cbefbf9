"""Models with packed weights, each packed once and kept as a directory of the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from keyhole.core.errors import UnsupportedModelError
from keyhole.core.model_files import stamps
from keyhole.engines.transformers.packed import pack_model, summary
from keyhole.engines.transformers.packed.files import NAME, load_packed, save_packed
from keyhole.generation.keeping import Loaded, kept, models_directory

_VERSION = 2  # of what is written; another one is another directory
_LOG = logging.getLogger(__name__)


def packed(source: str | Path, form: str, dtype: torch.dtype | None, read: Callable[[], Loaded]) -> Loaded:
    """A model with packed weights, from where it is kept, else packed now; `packing_seconds` says how long.

    Args:
        source: a GGUF file as a path; else a directory, or a name on the hub.
        form: "int8", "int4", or for a GGUF file "as-is".
        dtype: of what is not packed; None for the checkpoint's, and float32 for that of a GGUF file.
        read: loads what is no GGUF file as it is.

    Raises:
        ValueError: it cannot be packed, with the reason.
    """
    begin = time.perf_counter()
    if not isinstance(source, Path):
        _check_unquantised(source, form)
    folder, made = _folder(source, form, dtype), []

    def make() -> Loaded:
        made.append(form)
        return _make(source, form, dtype, read)

    if folder is None:
        found: Path | Loaded = make()
    else:
        path = Path(source)
        found = kept(folder, path if path.exists() else str(source), make, save_packed)
    loaded = _open(found) if isinstance(found, Path) else found
    if made:
        seconds = time.perf_counter() - begin
        loaded.model._packing_seconds = seconds  # type: ignore[assignment]
        _LOG.info("%s as %s: %s, packed in %.1f s", source, form, summary(loaded.model), seconds)
    return loaded


def packing_seconds(model: Any) -> float | None:
    """How long packing took when a model was loaded; None where nothing was packed then."""
    return getattr(model, "_packing_seconds", None)


def read_packed(source: str | Path, form: str | None) -> Loaded | None:
    """The model of a directory that `packed` keeps, None of others.

    Raises:
        ValueError: another form is asked for.
    """
    folder = Path(source)
    if not (folder / NAME).is_file():
        return None
    if form not in (None, "as-is"):
        raise ValueError(f"its weights are packed already, so they cannot become {form}; give as-is")
    return _open(folder)


def check_cpu(form: str) -> None:
    """Raise UnsupportedModelError where there is a GPU, for which packed weights have no code."""
    if torch.cuda.is_available():
        raise UnsupportedModelError(
            f"{form} weights are multiplied by code for CPUs, and this process has a GPU; leave the form of "
            "weights out, give a model that torchao quantised, or hide the GPU by CUDA_VISIBLE_DEVICES=''"
        )


def _open(folder: Path) -> Loaded:
    try:
        return Loaded(load_packed(folder), AutoTokenizer.from_pretrained(str(folder)))
    except MemoryError:
        raise
    except Exception as error:  # tokenizers has no errors of its own
        raise ValueError(
            f"{error}; delete the directory {str(folder)!r}, and it is converted again"
        ) from error


def _make(source: str | Path, form: str, dtype: torch.dtype | None, read: Callable[[], Loaded]) -> Loaded:
    if isinstance(source, Path):
        from keyhole.generation.gguf_blocks import read_blocks  # gguf is not always installed

        return read_blocks(source, form, dtype or torch.float32)
    loaded = read()
    pack_model(loaded.model.eval(), form)
    return loaded


def _check_unquantised(source: str, form: str) -> None:
    own = getattr(AutoConfig.from_pretrained(source), "quantization_config", None)
    if own is not None:
        held = own if isinstance(own, dict) else vars(own)
        raise ValueError(
            f"its weights are quantised already ({held.get('quant_method', 'unknown')}), so they cannot "
            f"become {form}; give as-is"
        )


def _folder(source: str | Path, form: str, dtype: torch.dtype | None) -> Path | None:
    """Where a model is kept, by its files or its commit on the hub; None of what has neither."""
    path = Path(source)
    about: Any = stamps(path)
    where = str(path.resolve())
    if not about:
        about, where = getattr(AutoConfig.from_pretrained(str(source)), "_commit_hash", None), str(source)
    if not about:
        return None
    key = hashlib.sha256(json.dumps([where, about]).encode()).hexdigest()[:20]
    number = "auto" if dtype is None else str(dtype).removeprefix("torch.")
    name = path.stem if isinstance(source, Path) else path.name
    return models_directory() / f"{name}-{key}-{form}-{number}-v{_VERSION}"
