"""What was fitted to a model's activations, on disk: `activations.safetensors` and `activations.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keyhole.core.artifacts import ArtifactFiles
from keyhole.core.errors import SavedStateError
from keyhole.core.model_info import ModelInfo
from keyhole.feedforward.fit import GRID, Fitted, Rule

_FILES = ArtifactFiles("activations", method="chess", format=2)


def write_activations(
    directory: str | Path,
    fitted: dict[str, Fitted],
    *,
    model: str,
    rule: Rule,
    attention: bool,
    **made: Any,
) -> None:
    """Write what is known of modules, by their names.

    Args:
        model: its fingerprint.
        rule: by which channels were weighed.
        attention: whether projections of attention are among them.
        made: what else there is to say about how they were made.
    """
    tensors = {
        f"{name}.{part}": tensor for name, each in fitted.items() for part, tensor in each._asdict().items()
    }
    _FILES.write(directory, tensors, model=model, rule=rule._asdict(), attention=attention, **made)


def read_activations(
    directory: str | Path, info: ModelInfo, rule: Rule, attention: bool
) -> dict[str, Fitted]:
    """What is known of a model's modules, by their names.

    Raises:
        ValueError: there is nothing, it is damaged, or made for another model or rule, or with or without
            projections of attention.
    """
    settings = _FILES.settings(directory, info)
    if settings["rule"] != rule._asdict():
        raise SavedStateError(
            f"{directory}: the activations were weighted by {Rule(**settings['rule'])}, not {rule}; "
            "give those options, or calibrate again with these"
        )
    if settings["attention"] != attention:
        raise SavedStateError(
            f"{directory}: the activations were made for attention={settings['attention']}, not {attention}; "
            "give that, or calibrate again"
        )
    return _FILES.read(directory, settings, _fitted)


def _fitted(tensors: dict[str, Tensor]) -> dict[str, Fitted]:
    """What is known, by module.

    Raises:
        ValueError: shapes, dtypes or numbers that it cannot have.
        KeyError: one of a module's tensors is missing.
    """
    names = sorted({name.rpartition(".")[0] for name in tensors})
    fitted = {name: Fitted(*(tensors[f"{name}.{part}"] for part in Fitted._fields)) for name in names}
    for name, (weights, quantiles) in fitted.items():
        if {weights.dtype, quantiles.dtype} != {torch.float32} or weights.dim() != 1 or not weights.numel():
            raise ValueError(
                f"the weights of {name} are {weights.dtype} {list(weights.shape)}, not float32 [F]"
            )
        if quantiles.shape != (GRID + 1,) or quantiles.diff().lt(0).any() or weights.lt(0).any():
            raise ValueError(
                f"the quantiles of {name} are not {GRID + 1} ascending numbers, or its weights are negative"
            )
    return fitted
