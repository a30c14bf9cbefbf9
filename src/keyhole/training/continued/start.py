"""Continued training from a model directory to a model directory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keyhole.engines.transformers.fingerprint import fingerprint
from keyhole.engines.transformers.implementation import text_config
from keyhole.generation import load_model
from keyhole.selection.importance import write_heads
from keyhole.training.continued.attention import SelectedAttention
from keyhole.training.continued.data import Source, Tasks, Texts
from keyhole.training.continued.importance import Importance
from keyhole.training.continued.rules import rule_of
from keyhole.training.continued.run import Report, Run
from keyhole.training.continued.settings import FULL, IMPORTANT, Settings, selection_term

MODEL = "model"


def train_further(
    settings: Settings, source: str | Path, texts: list[str], out: Path, *, report: Report | None = None
) -> Path:
    """Train a model further, going on from a checkpoint in `out` if there is one.

    Weights are float32 in training, and written in the type they were read in.

    Args:
        settings: all that decides the result, but for the model itself.
        source: the model's directory, or another name of `load_model`.
        texts: what is trained on where `settings.tasks` is not set.
        out: its subdirectory `model` gets the model, its tokenizer and the importance head.
        report: is given step, loss and accuracy after each step.

    Returns:
        The directory of the model.

    Raises:
        UnsupportedModelError: the model's attention is not plain causal attention.
        ValueError: the data do not fit the tokenizer, or the rows.
    """
    loaded = load_model(source)
    stored = loaded.model.dtype
    model = loaded.model.float()
    _check_positions(model, max(settings.contexts))
    attention = _attention(settings, model)
    run = Run(settings, model, attention, _source(settings, loaded.tokenizer, texts), out)
    settings.write(out)
    run.to_the_end(report)
    return _export(settings, run, loaded.tokenizer, stored, out / MODEL)


def _check_positions(model: PreTrainedModel, longest: int) -> None:
    limit = getattr(text_config(model), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ValueError(f"--context {longest} is more than the {limit} positions of the model")


def _attention(settings: Settings, model: PreTrainedModel) -> SelectedAttention | None:
    name = selection_term(settings.selection).name
    if name == FULL:
        return None
    config = text_config(model)
    heads = None
    if name == IMPORTANT:
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        generator = torch.Generator().manual_seed(settings.seed)
        bias = bool(getattr(config, "attention_bias", False))
        heads = [
            Importance(config.num_key_value_heads, size, bias=bias, generator=generator).to(model.device)
            for _ in range(config.num_hidden_layers)
        ]
    return SelectedAttention(rule_of(settings.selection), heads)


def _source(settings: Settings, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Source:
    if settings.tasks:
        return Tasks(tokenizer)
    return Texts(tokenizer, texts, max(settings.contexts), halved=not settings.sparse_prompts)


def _export(
    settings: Settings, run: Run, tokenizer: PreTrainedTokenizerBase, stored: torch.dtype, folder: Path
) -> Path:
    """Write model, tokenizer and head. The head is for the model as users load it."""
    run.model.to(stored)  # type: ignore[arg-type]
    run.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if run.attention is not None and run.heads:
        heads = {place: module.head for place, module in enumerate(run.heads)}
        made: dict[str, Any] = {"settings": asdict(settings), "rule": asdict(run.attention.rule)}
        write_heads(folder, heads, model=fingerprint(load_model(folder).model), **made)
    return folder
