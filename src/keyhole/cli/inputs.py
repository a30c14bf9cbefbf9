"""Files and models that users name, with errors that say what is wrong with them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHIPPED = Path(__file__).parent.parent / "models" / "default"
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# What transformers raises for files that are missing, cut short, of the wrong shape or of an unknown kind.
_UNLOADABLE = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, ImportError)
_LONG = 4096  # the longest context taken unasked
_ROOM = 128  # positions left for an answer


class Loaded(NamedTuple):
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def read_text(path: str) -> str:
    """The text of a UTF-8 file, or of stdin for `-`.

    Raises:
        ValueError: missing, empty or not text.
    """
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the prompt file {path!r}: {error.strerror}") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt file {path!r} is not UTF-8 text: {error.reason}") from error
    if "\0" in text:
        raise ValueError(f"the prompt file {path!r} is binary; give UTF-8 text")
    if not text.strip():
        raise ValueError(f"the prompt file {path!r} is empty; give UTF-8 text")
    return text


def load(name: str | None, threads: int | None = None) -> Loaded:
    """A model directory or hub name with its tokenizer, on the GPU if there is one; None is the shipped one.

    Raises:
        ValueError: there is none of that name, or it is incomplete or corrupt.
    """
    source = _source(name)
    import torch
    from safetensors import SafetensorError
    from transformers.utils import logging

    if threads is not None:
        torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, tokenizer = _read(source)
    except (*_UNLOADABLE, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot load the model {source!r}: {reason}; give a directory with config.json, tokenizer "
            "files and weights, or the name of a model on the hub"
        ) from error
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return Loaded(model, tokenizer)


def training_context(model: PreTrainedModel) -> int:
    """The context a model was trained at where its configuration says so, else what surely fits."""
    from keyhole.generation.decoding import position_range

    told = getattr(model.config, "keyhole", None) or {}
    if "training_context" in told:
        return int(told["training_context"])
    limit = position_range(model)
    return _LONG if limit is None else max(1, min(_LONG, limit - _ROOM))


def _source(name: str | None) -> str:
    if name is None:
        if not SHIPPED.is_dir():
            raise ValueError(
                "this installation ships no model; give one with --model, or make one with `keyhole train`"
            )
        return str(SHIPPED)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise ValueError(f"the model {name!r} is a file; give a Hugging Face model directory or a hub name")
    if not _HUB_NAME.fullmatch(name):
        raise ValueError(f"there is no model directory {name!r}")
    return name


def _read(source: str) -> Loaded:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    # Told to give its loading report too, it returns a pair, which its type does not say.
    loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto", output_loading_info=True)
    model, told = loaded
    missing = sorted(told["missing_keys"])
    if missing:
        raise ValueError(f"its weights lack {len(missing)} tensors, {missing[0]!r} among them")
    return Loaded(model.eval(), tokenizer)
