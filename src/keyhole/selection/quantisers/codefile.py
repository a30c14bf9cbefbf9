"""Codebooks on disk: `codebooks.safetensors` and `codebooks.json`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from keyhole.core.artifacts import ArtifactFiles
from keyhole.core.model_info import ModelInfo
from keyhole.selection.quantisers.codebook import Codebook

_FILES = ArtifactFiles("codebooks", method="a2ats", format=1)


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
        raise ValueError(
            f"{directory}: the codebooks were made for distance={settings['distance']}, not {distance}; "
            "give that distance, or calibrate again with --distance"
        )
    held = _books(directory, _FILES.written(directory))
    return list(_FILES.of_layers(directory, held, info))


@lru_cache(maxsize=2)  # every request asks for them
def _books(source: str | Path, _written: int) -> dict[int, Codebook]:
    tensors = _FILES.tensors(source)
    places = {int(name.split(".")[0]) for name in tensors}
    return {
        place: Codebook.of(tensors[f"{place}.points"], tensors[f"{place}.metric"]) for place in sorted(places)
    }
