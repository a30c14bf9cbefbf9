"""Files and models that users name, with errors that say what is wrong with them."""

from __future__ import annotations

import sys
import warnings
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from keyhole.cli.console import stderr
from keyhole.core.model_files import find_model, joined_name, split_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from keyhole.generation import Loaded

SHIPPED = Path(__file__).parent.parent / "models" / "default"
_LONG = 4096  # the longest context taken unasked
_ROOM = 128  # positions left for an answer


def read_text(path: str) -> str:
    """The text of a UTF-8 file, or of stdin for `-`.

    Raises:
        ValueError: missing, empty or not text.
    """
    name = "stdin" if path == "-" else f"the file {str(Path(path).expanduser())!r}"
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror}") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text: {error.reason}") from error
    if "\0" in text:
        raise ValueError(f"{name} is binary; give UTF-8 text")
    if not text.strip():
        raise ValueError(f"{name} is empty; give UTF-8 text")
    return text


def load(name: str | None, threads: int | None = None) -> Loaded:
    """A model with its tokenizer, as `keyhole.generation.load_model`; None is the shipped one.

    Raises:
        ValueError: there is none of that name, or it is incomplete or corrupt.
    """
    source = find_source(name)
    import torch
    from rich.markup import escape

    from keyhole.generation import load_model
    from keyhole.generation.keeping import ModelNotKept
    from keyhole.generation.packing import packing_seconds

    if threads is not None:
        torch.set_num_threads(threads)
    # Transformers has progress bars of its own, which would break ours.
    with redirect_stderr(StringIO()), warnings.catch_warnings(record=True) as warned:
        loaded = load_model(source)
    for warning in warned:
        if issubclass(warning.category, ModelNotKept):
            stderr().print("[yellow]warning:[/]", escape(str(warning.message)), highlight=False)
    seconds = packing_seconds(loaded.model)
    if seconds is not None:
        from keyhole.engines.transformers.packed import summary

        stderr().print(f"packed the weights in {seconds:.1f} s: {summary(loaded.model)}", highlight=False)
    return loaded


def training_context(model: PreTrainedModel) -> int:
    """The context a model was trained at where its configuration says so, else what surely fits."""
    from keyhole.engines.transformers.sizes import position_range

    stated = getattr(model.config, "keyhole", None) or {}
    if "training_context" in stated:
        return int(stated["training_context"])
    limit = position_range(model)
    return _LONG if limit is None else max(1, min(_LONG, limit - _ROOM))


def find_source(name: str | None) -> str | Path:
    """What `load` will read, found without importing torch, with its form of weights; raises as `load`."""
    plain, form = split_name(name or "")
    if str(plain):
        return joined_name(find_model(plain), form)
    if not SHIPPED.is_dir():
        raise ValueError(
            "this installation ships no model; give one with --model, or make one with `keyhole train`"
        )
    return joined_name(SHIPPED, form)
