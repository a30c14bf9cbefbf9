"""What was fitted to a model, on disk: see `keyhole.core.generations` for the files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from keyhole.core.errors import SavedStateError
from keyhole.core.generations import Generations
from keyhole.core.model_info import ModelInfo

_T = TypeVar("_T")


@dataclass(frozen=True)
class ArtifactFiles:
    """Files of one kind.

    Attributes:
        name: what they hold, in the plural, and are called.
        method: the method they are for.
        format: of the tensors.
        command: what makes them; by default `keyhole calibrate` with the method's name.
    """

    name: str
    method: str
    format: int
    command: str = ""

    def write(self, directory: str | Path, tensors: dict[str, Tensor], *, model: str, **made: Any) -> None:
        """Write tensors made for the model of a fingerprint, and what else there is to say about them.

        Raises:
            ValueError: NaN or infinity among them.
            OSError: they cannot be written, with the path; what was there before can still be read.
        """
        _check_finite(self.name, tensors)
        self._in(directory).write(tensors, {"model": model, **made})

    def settings(self, directory: str | Path, info: ModelInfo) -> dict[str, Any]:
        """What was said about them.

        Raises:
            SavedStateError: there are none, they are damaged, or made for another model.
        """
        held = self._in(directory)
        try:
            settings = held.manifest()
        except OSError as error:
            raise SavedStateError(
                f"there are no {self.name} in {str(held.path)!r} ({error.strerror}); "
                f"make some with `{self._making}`"
            ) from error
        if info.fingerprint is not None:
            self._check_model(held.path, settings["model"], info.fingerprint())
        return settings

    def read(
        self, directory: str | Path, settings: dict[str, Any], parse: Callable[[dict[str, Tensor]], _T]
    ) -> _T:
        """What `parse` makes of the tensors that the settings are of; kept in memory for the next request.

        Raises:
            SavedStateError: the tensors are damaged, or `parse` raised ValueError or KeyError.
        """
        held = self._in(directory)
        path = held.path / settings["file"]
        try:
            stamp = path.stat()
            return cast(_T, _parsed(held, path, stamp.st_mtime_ns, stamp.st_size, parse))
        except FileNotFoundError as error:
            lost = held.manifest() == settings
            what = "is gone; calibrate again" if lost else "was replaced meanwhile; try again"
            raise SavedStateError(f"{path} {what}") from error

    def of_layers(self, directory: str | Path, held: dict[int, _T], info: ModelInfo) -> list[_T]:
        """What is held of a model's served layers; without a model of the first ones, in order.

        Raises:
            SavedStateError: there is nothing of some of them.
        """
        places = sorted(held)[: len(info)] if info.fingerprint is None else info.layers
        if len(places) != len(info) or any(place not in held for place in places):
            source = self._in(directory).path
            raise SavedStateError(
                f"{source}: {self.name} are for layers {sorted(held)}, not for {info.layers}"
            )
        return [held[place] for place in places]

    @property
    def _making(self) -> str:
        return self.command or f"keyhole calibrate {self.method}"

    def _in(self, directory: str | Path) -> Generations:
        return Generations(directory, self.name, self.format, "calibrate again")

    def _check_model(self, source: Path, saved: str, found: str) -> None:
        if saved != found:
            pairs = zip(saved.split("; "), found.split("; "), strict=False)
            differing = [f"{was}, not {now}" for was, now in pairs if was != now]
            raise SavedStateError(
                f"{source}: the {self.name} were made for another model ({'; '.join(differing)}); make some "
                f"with `{self._making}`"
            )


@lru_cache(maxsize=8)  # every request asks for them
def _parsed(
    held: Generations, path: Path, _written: int, _size: int, parse: Callable[[dict[str, Tensor]], Any]
) -> Any:
    manifest = held.manifest()
    if manifest["file"] != path.name:
        raise FileNotFoundError(path)
    tensors = held.tensors(manifest)
    _check_finite(str(path), tensors)
    try:
        return parse(tensors)
    except (ValueError, KeyError) as error:
        raise SavedStateError(f"{path} does not hold {held.name}: {error}; {held.again}") from error


def _check_finite(where: str, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise SavedStateError(f"{where}: {name} holds NaN or infinity; calibrate again")
