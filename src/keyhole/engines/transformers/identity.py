"""What keys and values of a model depend on, beside the text: its identity, in parts that have names.

Two models of one identity cache the same for the same tokens: a copy loaded again, in another process, on
another device, with another attention implementation, with adapters that are there but not at work. What
forward hooks change is not seen.
"""

from __future__ import annotations

import json
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from keyhole.engines.transformers.adapters import adapters_of
from keyhole.engines.transformers.rope import LENGTH_DEPENDENT
from keyhole.engines.transformers.weights import counted_weights, weights_digest

# Entries of a configuration that say nothing about keys and values. Whether embeddings are tied shows in the
# weights, and so does the precision.
_VOLATILE = {
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "resid_pdrop",
    "return_dict",
    "router_aux_loss_coef",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_NARROW = (torch.bfloat16, torch.float16, torch.float32)


def identity(model: PreTrainedModel, *, reread: bool = False) -> dict[str, Any]:
    """The identity of a model as it is now, of what JSON can hold.

    All weights are read the first time, at the speed of memory, and later only those that are seen to have
    changed.

    Args:
        reread: read all weights again: a change through `.data` or numpy may not be seen.

    Raises:
        UnsupportedModelError: a weight cannot be read, with its name.
    """
    floating = {_name(w.dtype) for _, w in counted_weights(model) if w.is_floating_point()}
    return {
        "class": type(model).__name__,
        "config": _settings(model.config.to_diff_dict()),
        "dtype": sorted(floating),
        "rotary frequencies": _frequencies(model),
        "numbers of modules": _numbers(model),
        "parametrizations": _parametrizations(model),
        "adapters": adapters_of(model),
        "weights": weights_digest(model, reread=reread),
    }


def differences(saved: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs between two identities, in words, of each part that does."""
    out = _of_settings(saved.get("config", {}), found["config"])
    # Numbers in another precision are other numbers: that goes without saying.
    compared = ("class", "dtype", "rotary frequencies", "parametrizations", "adapters")
    out += [
        f"saved with {name} {saved.get(name)}; this model has {found[name]}"
        for name in compared
        if saved.get(name) != found[name]
    ]
    if not out:  # else they follow from the configuration
        out = _of_settings(saved.get("numbers of modules", {}), found["numbers of modules"])
    if saved.get("weights") != found["weights"] and saved.get("dtype") == found["dtype"]:
        out.append("the weights are others")
    return out


def _of_settings(saved: dict[str, Any], found: dict[str, Any]) -> list[str]:
    def shown(settings: dict[str, Any], name: str) -> str:
        return json.dumps(settings[name]) if name in settings else "the default"

    names = [name for name in sorted({**saved, **found}) if saved.get(name) != found.get(name)]
    return [f"saved with {name}={shown(saved, name)}; this model has {shown(found, name)}" for name in names]


def _settings(entries: dict[str, Any]) -> dict[str, Any]:
    """Entries that count, those of nested configurations too, as JSON would give them back."""
    kept = {
        str(name): _settings(entry) if isinstance(entry, dict) else entry
        for name, entry in entries.items()
        if name not in _VOLATILE and not str(name).startswith("_")
    }
    return json.loads(json.dumps(kept, default=str, sort_keys=True))


def _frequencies(model: PreTrainedModel) -> dict[str, list[str]]:
    """Of each rotary module: the precision its frequencies are held in, and two sums of their logarithms.

    They are computed from the configuration when a model is made, but may be rounded with the model, or
    changed by hand. Sums are rounded, since devices compute them with other last digits; the second one
    weighs each by its place.
    """
    found = {}
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or "original" in name or buffer.is_meta:
                continue
            held = buffer.detach().cpu()
            if any(kind in str(getattr(module, "rope_type", "")) for kind in LENGTH_DEPENDENT):
                held = getattr(module, f"{name.removesuffix('inv_freq')}original_inv_freq", held).cpu()
            exact = next((d for d in _NARROW if torch.equal(held.to(d).double(), held.double())), held.dtype)
            logs = held.double().clamp(min=1e-30).log().flatten()
            by_place = (logs * torch.linspace(0, 1, len(logs), dtype=logs.dtype)).sum()
            found[f"{path}.{name}"] = [_name(exact), f"{logs.sum():.2f}", f"{by_place:.2f}"]
    return found


def _numbers(model: PreTrainedModel) -> dict[str, list[float]]:
    """What modules hold as plain numbers (epsilons, scales), in order; repeats are left out."""
    found: dict[str, list[float]] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and not name.startswith("_") and not _is_dropout(module, name):
                held = found.setdefault(f"{type(module).__name__}.{name}", [])
                if held[-1:] != [value]:
                    held.append(value)
    return found


def _is_dropout(module: nn.Module, name: str) -> bool:
    return "drop" in name or "Drop" in type(module).__name__


def _parametrizations(model: PreTrainedModel) -> list[str]:
    """Functions that weights go through before they are used."""
    return [
        f"{path}.{name}: {', '.join(type(step).__name__ for step in cast(nn.ModuleList, steps))}"
        for path, module in model.named_modules()
        if isinstance(held := module._modules.get("parametrizations"), nn.ModuleDict)
        for name, steps in held.items()
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
