"""SALE's thresholds on disk: `thresholds.safetensors` and `thresholds.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keyhole.core.artifacts import ArtifactFiles
from keyhole.core.errors import SavedStateError
from keyhole.core.model_info import ModelInfo
from keyhole.kernels import Reach

_FILES = ArtifactFiles("thresholds", method="sale", format=2)


def write_thresholds(
    directory: str | Path, thresholds: dict[int, Tensor], *, model: str, reach: Reach, **made: Any
) -> None:
    """Write thresholds float32 `[H]` by their layers' places in the model.

    Args:
        model: its fingerprint.
        reach: what was always read when they were found.
        made: what else there is to say about how they were made.
    """
    tensors = {str(place): tau for place, tau in thresholds.items()}
    found = {"reach": reach._asdict(), "layers": sorted(thresholds)}
    _FILES.write(directory, tensors, model=model, **found, **made)


def read_thresholds(directory: str | Path, info: ModelInfo, reach: Reach) -> list[Tensor]:
    """The thresholds of a model's served layers; without a model the first ones of the file, in order.

    Raises:
        ValueError: there are none, they are damaged, or made for another model or reach.
    """
    settings = _FILES.settings(directory, info)
    if settings["reach"] != reach._asdict():
        raise SavedStateError(
            f"{directory}: the thresholds were made for {Reach(**settings['reach'])}, not {reach}; "
            "give those options, or calibrate again with these"
        )
    return _FILES.of_layers(directory, _FILES.read(directory, settings, _thresholds), info)


def _thresholds(tensors: dict[str, Tensor]) -> dict[int, Tensor]:
    """Thresholds by layer.

    Raises:
        ValueError: shapes, dtypes or numbers that no thresholds have.
    """
    heads = {tau.shape for tau in tensors.values()}
    for place, tau in tensors.items():
        if tau.dtype != torch.float32 or tau.dim() != 1 or not tau.numel() or len(heads) > 1:
            raise ValueError(
                f"those of layer {place} are {tau.dtype} {list(tau.shape)}, not float32 [H] as all others"
            )
        if tau.lt(0).any():
            raise ValueError(f"one of layer {place} is negative: {tau.min().item()}")
    return {int(place): tau for place, tau in tensors.items()}
