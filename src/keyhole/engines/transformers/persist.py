"""Save a cache, index included, and take it up again in another process.

See `keyhole.core.generations` for the files. The manifest says which method with which options the cache is
of, which model made it (`keyhole.engines.transformers.identity`), by which versions, and what each layer is.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import Cache, PreTrainedModel

from keyhole.core.errors import SavedStateError, UnsupportedCacheError
from keyhole.core.generations import Generations
from keyhole.core.version import __version__
from keyhole.engines.transformers.cache import request_of, served_layers
from keyhole.engines.transformers.devices import input_device
from keyhole.engines.transformers.identity import differences, identity
from keyhole.engines.transformers.layer_state import check_finite, layer_state, restore_layer
from keyhole.methods.base import Method
from keyhole.methods.recipe import Recipe

# Options that may differ between a saved cache and a loaded one.
_PLACING = ("place", "block_cache", "block_eviction", "resident")


def _files(directory: str | Path) -> Generations:
    return Generations(directory, "cache", format=2, again="save the cache again")


def write(cache: Cache, directory: str | Path, *, recipe: Recipe, model: PreTrainedModel) -> None:
    """Write what `cache` holds, made for `model` by `recipe`, to `directory`.

    Raises:
        UnsupportedCacheError: the cache holds nothing, or something that cannot be saved.
        SavedStateError: its layers are not of one length, or hold NaN: a request was broken off in it.
        UnsupportedModelError: a weight of the model cannot be read, so that the model cannot be identified.
        OSError: the directory cannot be written to; what was saved there before can still be loaded.
    """
    lengths = sorted({layer.length for layer in served_layers(cache)})
    if not lengths or lengths == [0]:
        raise UnsupportedCacheError(
            "only a cache with tokens in layers served by Keyhole can be saved; this one has "
            f"{len(served_layers(cache))} such layers of {len(cache.layers)}, with {sum(lengths)} tokens"
        )
    if len(lengths) > 1:
        raise SavedStateError(f"layers of this cache hold {lengths} tokens: a request was broken off in it")
    states = [layer_state(layer) for layer in cache.layers]
    tensors = {
        f"{index}.{name}": tensor for index, (_, held) in enumerate(states) for name, tensor in held.items()
    }
    check_finite("the cache cannot be saved", tensors)
    request = request_of(cache)
    facts = {
        "versions": {
            "keyhole": __version__,
            **{module.__name__: module.__version__ for module in (torch, transformers)},
        },
        "method": str(recipe),
        "model": identity(model, reread=True),
        "request": {} if request is None else request.state(),
        "layers": [facts for facts, _ in states],
    }
    _files(directory).write(tensors, facts)


@dataclass(frozen=True)
class Saved:
    """A cache on disk: the recipe it is of, and what its layers held."""

    source: Path
    recipe: Recipe
    request: dict[str, Any]
    layers: list[dict[str, Any]]
    tensors: dict[str, Tensor]

    def restore(self, cache: Cache) -> None:
        """Fill a fresh cache made by the recipe.

        Raises:
            SavedStateError: it has other layers.
        """
        if len(self.layers) != len(cache.layers):
            raise SavedStateError(f"{self.source} has {len(self.layers)} layers, not {len(cache.layers)}")
        for index, (layer, facts) in enumerate(zip(cache.layers, self.layers, strict=True)):
            prefix = f"{index}."
            held = {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}
            try:
                restore_layer(layer, facts, held)
            except SavedStateError as error:
                raise SavedStateError(f"layer {index} in {self.source}: {error}") from error
        request = request_of(cache)
        if request is not None:
            request.restore(self.request)


def read(directory: str | Path, model: PreTrainedModel, method: str | Method | Recipe | None = None) -> Saved:
    """What was saved for `model`, to be placed as `method` says.

    Raises:
        FileNotFoundError: no cache there.
        SavedStateError: of another format, model or method, or damaged.
    """
    files = _files(directory)
    manifest, tensors = files.read()
    where = str(files.path)
    differing = differences(manifest["model"], identity(model, reread=True))
    if differing:
        raise SavedStateError(f"{where}: the cache belongs to another model: {'; '.join(differing)}")
    recipe = _recipe(where, manifest, method)
    check_finite(where, tensors)
    device = input_device(model)
    on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
    return Saved(files.path, recipe, manifest["request"], manifest["layers"], on_device)


def placed_otherwise(recipe: Recipe, other: Recipe) -> bool:
    """Whether two recipes are one, or differ only in where keys and values are kept."""
    return [unplaced(stage) for stage in recipe.stages] == [unplaced(stage) for stage in other.stages]


def _recipe(where: str, manifest: dict[str, Any], method: str | Method | Recipe | None) -> Recipe:
    try:
        saved = Recipe.parse(manifest["method"])
    except ValueError as error:
        raise SavedStateError(f"{where}: saved as {manifest['method']} ({error})") from error
    asked = saved if method is None else Recipe.parse(method)
    if not placed_otherwise(saved, asked):
        raise SavedStateError(
            f"{where}: the cache is of {saved}, not of {asked}; only {', '.join(_PLACING)} may differ"
        )
    return asked


def unplaced(stage: Method) -> Method:
    """A stage with keys and values where they are by default."""
    known = {field.name: field.default for field in fields(stage)}  # type: ignore[arg-type]
    return replace(stage, **{name: known[name] for name in _PLACING if name in known})  # type: ignore[type-var]
