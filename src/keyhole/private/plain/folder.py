"""Writing a plain folder: a model, a method, prompts, and what plaintext decoding makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import PreTrainedModel

from keyhole.core.errors import SpecError
from keyhole.core.files import write_text, write_whole
from keyhole.core.version import __version__
from keyhole.engines.transformers import attach
from keyhole.engines.transformers.cache import end_prompt
from keyhole.methods.base import Method
from keyhole.methods.mpcache import MPCache
from keyhole.methods.recipe import Recipe
from keyhole.methods.streamingllm import StreamingLLM
from keyhole.private.files import MODEL, PROMPTS, RUN, Case, Run, described, digest
from keyhole.private.plain.export import shape_of, weights_of
from keyhole.private.settings import Amount, Settings

_OPTIONS = ("sinks", "window", "per_head", "kernel", "share", "fine", "coarse", "survivors", "alpha")
_PLAIN = {"place": "device", "kv_dtype": "auto", "layers": "uniform", "heads": "uniform", "every": 1}


def settings_of(method: str, *, ranking: str = "pairs", gather: str = "auto") -> Settings:
    """A method string as public settings.

    Raises:
        SpecError: not a method of secure computation, or with options that it does not have.
        SettingsError: options that would make a size secret.
    """
    stages = Recipe.parse(method).stages
    found = stages[0] if len(stages) == 1 else None
    if found is None or found.name not in ("dense", "streamingllm", "mpcache"):
        raise SpecError(
            f"{method!r} cannot be computed securely; give dense, streamingllm(...) or "
            f"mpcache(...), and one alone"
        )
    _refuse_others(found)
    how: dict[str, Any] = {"ranking": ranking, "gather": gather}
    if isinstance(found, MPCache):
        given = {name: getattr(found, name) for name in _OPTIONS}
        given["dense_below"] = 0 if found.dense_below == "auto" else found.dense_below
        amounts: dict[str, Any] = {"keep": _amount(found.keep), "budget": _amount(found.budget)}
        return Settings(found.name, **given, **amounts, **how)
    if isinstance(found, StreamingLLM):
        return Settings(found.name, found.sinks, found.window, budget=_amount(found.budget), **how)
    return Settings(found.name, **how)


def _refuse_others(method: Method) -> None:
    for name, wanted in _PLAIN.items():
        if getattr(method, name, wanted) != wanted:
            raise SpecError(
                f"{method.name}: {name}={getattr(method, name)} is not there in secure computation; "
                f"give {name}={wanted}"
            )


def _amount(budget: Any) -> Amount:
    return Amount(budget.tokens, budget.fraction)


@torch.no_grad()
def case_of(model: PreTrainedModel, method: str, tokens: Sequence[int], new: int) -> Case:
    """A prompt with the greedy tokens that Keyhole decodes in the clear."""
    ids, cache, made, margins = torch.tensor([list(tokens)]), None, [], []
    with attach(model, method):
        for _ in range(new):
            out = model(ids, past_key_values=cache, use_cache=True)
            if cache is None:
                end_prompt(out.past_key_values)
            cache, best = out.past_key_values, out.logits[0, -1].float().topk(2)
            made.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
            ids = torch.tensor([made[-1:]])
    return Case(np.array(tokens, np.int64), np.array(made, np.int64), np.array(margins, np.float32))


def write(
    folder: Path,
    model: PreTrainedModel,
    method: str,
    settings: Settings,
    prompts: Sequence[Sequence[int]],
    new: int,
) -> Run:
    """Fill a folder for `keyhole private run`."""
    shape = shape_of(model.config)
    weights = weights_of(dict(model.state_dict()), shape)
    cases = [case_of(model, method, tokens, new) for tokens in prompts]
    tensors = {
        f"{part}.{place}": getattr(case, part)
        for place, case in enumerate(cases)
        for part in ("tokens", "expected", "margins")
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, held in ((MODEL, weights), (PROMPTS, tensors)):
        write_whole(folder / name, lambda path, held=held: save_file(held, path))
    digests = {name: digest(folder / name) for name in (MODEL, PROMPTS)}
    sizes = {name: tensor.shape for name, tensor in weights.items()}
    run = Run(shape, settings, sizes, digests, __version__)
    write_text(folder / RUN, described(run))
    return run
