"""Models by name: a Hugging Face directory, a name on the hub, or a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from keyhole.core.model_files import find_model

# What transformers raises for files that are missing, cut short, of the wrong shape or of an unknown kind.
_UNLOADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    SafetensorError,
)


class Loaded(NamedTuple):
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_model(name: str | Path) -> Loaded:
    """A model with its tokenizer, in evaluation mode, on the GPU if there is one.

    Args:
        name: a Hugging Face directory, a name on the hub, a GGUF file, or a directory with one GGUF file.

    Raises:
        ValueError: there is none of that name, or it is incomplete or corrupt; the message names it.
    """
    source = find_model(name)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, tokenizer = _read_gguf(source) if isinstance(source, Path) else _read(source)
    except _UNLOADABLE as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot load the model {str(source)!r}: {reason}; {_wanted(source)}") from error
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return Loaded(model.eval(), tokenizer)


def _wanted(source: str | Path) -> str:
    if isinstance(source, Path):
        return "give a GGUF file of an architecture that transformers reads, or a Hugging Face directory"
    wanted = "give a directory with config.json, tokenizer files and weights, or a name on the hub"
    return wanted if Path(source).is_dir() else f"there is no directory of that name; {wanted}"


def _read(source: str) -> Loaded:
    tokenizer = AutoTokenizer.from_pretrained(source)
    # With its loading report it returns a pair, which its type does not say.
    loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto", output_loading_info=True)
    model, report = loaded
    _check_complete(report["missing_keys"])
    return Loaded(model, tokenizer)


def _read_gguf(path: Path) -> Loaded:
    """The weights dequantised. `from_pretrained(gguf_file=...)` would need accelerate."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    folder, file = str(path.parent), path.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    config = AutoConfig.from_pretrained(folder, gguf_file=file)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    weights: Mapping[str, Any] = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    report = model.load_state_dict(weights["tensors"], strict=False)
    tied = set(model.all_tied_weights_keys or ()) if config.tie_word_embeddings else set()
    _check_complete(set(report.missing_keys) - tied)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Loaded(model, tokenizer)


def _check_complete(missing: Any) -> None:
    names = sorted(missing)
    if names:
        raise ValueError(f"its weights lack {len(names)} tensors, {names[0]!r} among them")
