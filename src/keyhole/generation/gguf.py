"""GGUF files: dequantised once into an ordinary Hugging Face directory of the user's cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from keyhole.generation.keeping import Loaded, kept, models_directory

_VERSION = 1  # of what is written; another one is another directory


def converted(path: Path, dtype: torch.dtype) -> Path | Loaded:
    """The directory with the model of a GGUF file; the model itself, with a warning, where none can be kept.

    Raises:
        ValueError and what transformers raises: the file cannot be read, or lacks weights.
    """
    folder = models_directory() / _key(path, dtype)
    return kept(folder, path, lambda: _dequantised(path, dtype), lambda model, to: model.save_pretrained(to))


def _key(path: Path, dtype: torch.dtype) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{path.stem}-{digest[:20]}-{str(dtype).removeprefix('torch.')}-v{_VERSION}"


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
    model.generation_config = generation_config(tokenizer)
    return Loaded(model, tokenizer)


def generation_config(tokenizer: Any) -> GenerationConfig:
    """What ends and pads texts, which a GGUF file says of its tokens only."""
    return GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def check_complete(missing: Any) -> None:
    """Raise ValueError where a checkpoint lacks tensors of its model."""
    names = sorted(missing)
    if names:
        raise ValueError(f"its weights lack {len(names)} tensors, {names[0]!r} among them")
