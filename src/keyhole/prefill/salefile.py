"""SALE's thresholds on disk: `thresholds.safetensors` and `thresholds.json`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from keyhole.core.artifacts import ArtifactFiles
from keyhole.core.model_info import ModelInfo
from keyhole.kernels import Reach

_FILES = ArtifactFiles("thresholds", method="sale", format=1)


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
    told = {"reach": reach._asdict(), "layers": sorted(thresholds)}
    _FILES.write(directory, tensors, model=model, **told, **made)


def read_thresholds(directory: str | Path, info: ModelInfo, reach: Reach) -> list[Tensor]:
    """The thresholds of a model's served layers; without a model the first ones of the file, in order.

    Raises:
        ValueError: there are none, they are damaged, or made for another model or reach.
    """
    settings = _FILES.settings(directory, info)
    if settings["reach"] != reach._asdict():
        raise ValueError(
            f"{directory}: the thresholds were made for {Reach(**settings['reach'])}, not {reach}; "
            "give those options, or calibrate again with these"
        )
    held = _thresholds(directory, _FILES.written(directory))
    return _FILES.of_layers(directory, held, info)


@lru_cache(maxsize=2)  # every request asks for them
def _thresholds(source: str | Path, _written: int) -> dict[int, Tensor]:
    return {int(place): tau for place, tau in _FILES.tensors(source).items()}
