"""Codebooks on disk: `codebooks.safetensors` and `codebooks.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keyhole.core.artifacts import ArtifactFiles
from keyhole.core.errors import SavedStateError
from keyhole.core.model_info import ModelInfo
from keyhole.selection.quantisers.codebook import Codebook

_FILES = ArtifactFiles("codebooks", method="a2ats", format=2)


def write_codebooks(
    directory: str | Path, books: dict[int, Codebook], *, model: str, distance: int, **made: Any
) -> None:
    """Write codebooks `[1, Hkv, C, D]` by their layers' places in the model.

    Args:
        model: its fingerprint.
        distance: the constant position of the queries they were fitted for.
        made: what else there is to say about how they were made.
    """
    tensors = {
        f"{place}.{name}": tensor
        for place, book in books.items()
        for name, tensor in (("points", book.points), ("metric", book.metric))
    }
    _FILES.write(directory, tensors, model=model, distance=distance, layers=sorted(books), **made)


def read_codebooks(directory: str | Path, info: ModelInfo, distance: int) -> list[Codebook | None]:
    """The codebooks of a model's served layers; without a model the first ones of the file, in order.

    Raises:
        ValueError: there are none, they are damaged, or made for another model or distance.
    """
    settings = _FILES.settings(directory, info)
    if settings["distance"] != distance:
        raise SavedStateError(
            f"{directory}: the codebooks were made for distance={settings['distance']}, not {distance}; "
            "give that distance, or calibrate again with --distance"
        )
    return list(_FILES.of_layers(directory, _FILES.read(directory, settings, _books), info))


def _books(tensors: dict[str, Tensor]) -> dict[int, Codebook]:
    """Codebooks by layer.

    Raises:
        ValueError: shapes, dtypes or numbers that no codebook has.
        KeyError: one of a layer's two tensors is missing.
    """
    books = {}
    for place in sorted({int(name.split(".")[0]) for name in tensors}):
        points, metric = tensors[f"{place}.points"], tensors[f"{place}.metric"]
        _check(place, points, metric)
        books[place] = Codebook.of(points, metric)
    return books


def _check(place: int, points: Tensor, metric: Tensor) -> None:
    """Codewords of one codebook and a lower triangular metric that can be inverted."""
    size = points.shape[-1:]
    fitting = (
        points.dtype == metric.dtype == torch.float32
        and points.dim() == metric.dim() == 4
        and points.shape[0] == 1
        and points.numel() > 0
        and metric.shape == (*points.shape[:2], *size, *size)
    )
    if not fitting:
        raise ValueError(
            f"points {list(points.shape)} and metric {list(metric.shape)} of layer {place}, "
            f"{points.dtype} and {metric.dtype}, are not float32 [1, Hkv, C, D] and [1, Hkv, D, D]"
        )
    if metric.triu(1).any() or not metric.diagonal(dim1=-2, dim2=-1).gt(0).all():
        raise ValueError(f"the metric of layer {place} is not lower triangular with a positive diagonal")
