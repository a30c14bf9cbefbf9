"""GGUF files: dequantised once into an ordinary Hugging Face directory of the user's cache.

A directory is there whole or not at all. Its name contains the digest of the GGUF file, the number type and
the version of this conversion, so that another file, even of the same name, is another directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from keyhole.core.costs.places import HOME
from keyhole.core.files import PARTIAL, locked, sync

_VERSION = 1  # of what is written; another one is another directory
_PATIENCE = 900.0  # seconds to wait for a process that converts the same file


class Loaded(NamedTuple):
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class ModelNotKept(UserWarning):
    """A converted model could not be kept, with the reason."""


def converted(path: Path, dtype: torch.dtype) -> Path | Loaded:
    """The directory with the model of a GGUF file; the model itself, with a warning, where none can be kept.

    Raises:
        ValueError and what transformers raises: the file cannot be read, or lacks weights.
    """
    folder = models_directory() / _key(path, dtype)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock"), patience=_PATIENCE):
            return folder if folder.is_dir() else _convert(path, dtype, folder)
    except (OSError, TimeoutError) as error:
        if not path.is_file():
            raise
        return _unkept(_dequantised(path, dtype), folder, error)


def models_directory() -> Path:
    """Where converted models are kept: below KEYHOLE_HOME, or in the system's place for caches."""
    named = os.environ.get(HOME)
    home = Path(named).expanduser() if named else platformdirs.user_cache_path("keyhole", appauthor=False)
    return home / "models"


def _key(path: Path, dtype: torch.dtype) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{path.stem}-{digest[:20]}-{str(dtype).removeprefix('torch.')}-v{_VERSION}"


def _convert(path: Path, dtype: torch.dtype, folder: Path) -> Path | Loaded:
    """Called by one process at a time."""
    loaded = _dequantised(path, dtype)
    partial = folder.with_name(f"{PARTIAL}{folder.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        _check_room(loaded.model, folder.parent)
        loaded.model.save_pretrained(partial)
        loaded.tokenizer.save_pretrained(partial)
        origin = {"converted_from": path.name, "key": folder.name}
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


def _dequantised(path: Path, dtype: torch.dtype) -> Loaded:
    """`from_pretrained(gguf_file=...)` would need accelerate, and gives a model that refuses to be saved."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    folder, file = str(path.parent), path.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    config = AutoConfig.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    weights: Mapping[str, Any] = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    report = model.load_state_dict(weights["tensors"], strict=False)
    tied = set(model.all_tied_weights_keys or ()) if config.tie_word_embeddings else set()
    check_complete(set(report.missing_keys) - tied)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Loaded(model, tokenizer)


def check_complete(missing: Any) -> None:
    """Raise ValueError where a checkpoint lacks tensors of its model."""
    names = sorted(missing)
    if names:
        raise ValueError(f"its weights lack {len(names)} tensors, {names[0]!r} among them")
