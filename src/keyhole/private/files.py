"""The frozen plain format, by which weights, settings and inputs pass from Keyhole's environment to SPU's.

A folder of `model.safetensors`, `prompts.safetensors` and `run.json`, which names the format, the version,
the shape
of the model, the settings, and the SHA-256 of both files. It is read with numpy and safetensors alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from keyhole.private.settings import Settings

FORMAT = 1
MODEL, PROMPTS, RUN = "model.safetensors", "prompts.safetensors", "run.json"


class PlainFileError(ValueError):
    """A plain folder that is incomplete, damaged, or of another format."""


@dataclass(frozen=True)
class Shape:
    """The architecture, which is public.

    Attributes:
        gated: a product of two projections in the feed-forward (SwiGLU), else one (GPT-2).
        learned_positions: position embeddings, else RoPE.
        tied: logits are products with the embedding.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    eps: float
    activation: str
    gated: bool
    learned_positions: bool
    tied: bool
    rope_theta: float

    def tensors(self) -> Iterable[str]:
        """The names that a model of this shape must have; biases `*.b` are optional."""
        yield "embed"
        if self.learned_positions:
            yield "positions"
        if not self.tied:
            yield "head"
        yield "norm.w"
        parts = ["norm1", "q", "k", "v", "o", "norm2", "up", "down", *(["gate"] if self.gated else [])]
        yield from (f"{layer}.{part}.w" for layer in range(self.layers) for part in parts)


@dataclass(frozen=True)
class Case:
    """One prompt, and what Keyhole's plaintext decoding by the same method made of it.

    Attributes:
        tokens: int64 `[N]`.
        expected: int64 `[M]`, greedy tokens.
        margins: float32 `[M]`, by how much each one's logit is above the next.
    """

    tokens: np.ndarray
    expected: np.ndarray
    margins: np.ndarray


@dataclass(frozen=True)
class Run:
    """What is public of a folder: all that parties without data of their own know.

    Attributes:
        tensors: shapes of the weights by name.
    """

    shape: Shape
    settings: Settings
    tensors: dict[str, tuple[int, ...]]
    sha256: dict[str, str]
    version: str


def described(run: Run) -> str:
    """The text of `run.json`."""
    public = {"format": FORMAT, "keyhole": run.version, "shape": asdict(run.shape)}
    rest = {"settings": run.settings.as_json(), "tensors": run.tensors, "sha256": run.sha256}
    return json.dumps(public | rest, indent=1) + "\n"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(folder: Path, run: Run) -> dict[str, np.ndarray]:
    """The server's part of a folder, float32 by name.

    Raises:
        PlainFileError: damaged, or other tensors than the run names.
    """
    weights = _tensors(folder / MODEL, run.sha256[MODEL])
    if {name: tensor.shape for name, tensor in weights.items()} != run.tensors:
        raise PlainFileError(f"{folder / MODEL} has other tensors than {RUN} names; export again")
    return weights


def read_cases(folder: Path, run: Run) -> list[Case]:
    """The client's part of a folder.

    Raises:
        PlainFileError: damaged, or not prompts.
    """
    tensors = _tensors(folder / PROMPTS, run.sha256[PROMPTS])
    parts = ("tokens", "expected", "margins")
    count = sum(name.startswith("tokens.") for name in tensors)
    if set(tensors) != {f"{part}.{place}" for part in parts for place in range(count)}:
        raise PlainFileError(f"{folder / PROMPTS} has other tensors than prompts have; export again")
    return [Case(*(tensors[f"{part}.{place}"] for part in parts)) for place in range(count)]


def read_run(folder: Path) -> Run:
    """The public part of what `keyhole private export` wrote.

    Raises:
        PlainFileError: missing, not JSON, of another format, or incomplete.
        SettingsError: the settings are out of range, or of another version.
    """
    data, path = _json(folder), folder / RUN
    try:
        shape = Shape(**data["shape"])
        tensors = {name: tuple(sizes) for name, sizes in data["tensors"].items()}
        run = Run(shape, Settings.of_json(data["settings"]), tensors, data["sha256"], data["keyhole"])
    except (KeyError, TypeError, AttributeError) as error:
        raise PlainFileError(
            f"{path} is incomplete, or of another version ({error}); export again"
        ) from error
    missing = [name for name in shape.tensors() if name not in tensors]
    if missing:
        raise PlainFileError(f"{path}: no tensor {missing[0]!r}; export the model again")
    return run


def _json(folder: Path) -> dict[str, Any]:
    path = folder / RUN
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlainFileError(
            f"cannot read {str(path)!r}: {error}; make the folder with keyhole private export"
        ) from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise PlainFileError(f"{path} is of format {found!r}, and this version reads {FORMAT}; export again")
    return data


def _tensors(path: Path, wanted: str) -> dict[str, np.ndarray]:
    try:
        if digest(path) != wanted:
            raise PlainFileError(f"{path} is not what was exported: its SHA-256 differs; export again")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise PlainFileError(f"cannot read {str(path)!r}: {error}; export again") from error
