"""What was fitted to a model, on disk: `NAME.safetensors`, and `NAME.json` that says what it is for.

The settings are written last, each file whole under another name and then renamed: a directory with settings
is complete.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from keyhole.core.model_info import ModelInfo

_T = TypeVar("_T")


@dataclass(frozen=True)
class ArtifactFiles:
    """Files of one kind.

    Attributes:
        name: what they hold, in the plural, and are called.
        method: the method they are for, and the command that makes them.
        format: of the tensors.
    """

    name: str
    method: str
    format: int

    def write(self, directory: str | Path, tensors: dict[str, Tensor], *, model: str, **made: Any) -> None:
        """Write tensors made for the model of a fingerprint, and what else there is to say about them."""
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        settings = target / f"{self.name}.json"
        settings.unlink(missing_ok=True)
        partial = target / f"{self.name}.safetensors.partial"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
        partial.replace(self._tensors(target))
        partial = target / f"{self.name}.json.partial"
        partial.write_text(json.dumps({"format": self.format, "model": model} | made, indent=1))
        partial.replace(settings)

    def settings(self, directory: str | Path, info: ModelInfo) -> dict[str, Any]:
        """What was said about them.

        Raises:
            ValueError: there are none, they are damaged, or made for another model.
        """
        source = _source(directory)
        try:
            settings = json.loads((source / f"{self.name}.json").read_text())
        except OSError as error:
            raise ValueError(
                f"there are no {self.name} in {str(source)!r}; "
                f"make some with `keyhole calibrate {self.method}`"
            ) from error
        except ValueError as error:
            raise ValueError(f"{source}: {self.name}.json is damaged ({error}); calibrate again") from error
        if settings["format"] != self.format:
            raise ValueError(f"{source}: format {settings['format']} is not {self.format}; calibrate again")
        if info.fingerprint is not None and settings["model"] != info.fingerprint():
            raise ValueError(
                f"{source}: the {self.name} belong to another model; make some with "
                f"`keyhole calibrate {self.method}`"
            )
        return settings

    def written(self, directory: str | Path) -> int:
        """When the tensors were written."""
        tensors = self._tensors(_source(directory))
        try:
            return tensors.stat().st_mtime_ns
        except FileNotFoundError as error:
            raise ValueError(f"{tensors} is gone; calibrate again") from error

    def tensors(self, directory: str | Path) -> dict[str, Tensor]:
        """The tensors.

        Raises:
            ValueError: they are damaged.
        """
        source = _source(directory)
        try:
            return load_file(self._tensors(source))
        except SafetensorError as error:
            raise ValueError(
                f"{source}: {self.name}.safetensors is damaged ({error}); calibrate again"
            ) from error

    def of_layers(self, directory: str | Path, held: dict[int, _T], info: ModelInfo) -> list[_T]:
        """What is held of a model's served layers; without a model of the first ones, in order.

        Raises:
            ValueError: there is nothing of some of them.
        """
        places = sorted(held)[: len(info)] if info.fingerprint is None else info.layers
        if len(places) != len(info) or any(place not in held for place in places):
            raise ValueError(
                f"{_source(directory)}: there are {self.name} of layers {sorted(held)}, not of {info.layers}"
            )
        return [held[place] for place in places]

    def _tensors(self, source: Path) -> Path:
        return source / f"{self.name}.safetensors"


def _source(directory: str | Path) -> Path:
    return Path(directory).expanduser()
