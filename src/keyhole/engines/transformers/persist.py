"""Save a cache, index included, and take it up again in another process.

A directory holds `cache.safetensors` (tensors) and `cache.json` (settings). The tensors are written first and
the settings last, each whole under another name and then renamed, so a directory with settings is complete.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Cache, PreTrainedModel

from keyhole.core.errors import UnsupportedCacheError
from keyhole.engines.transformers.cache import KeyholeLayer, served_layers
from keyhole.engines.transformers.fingerprint import fingerprint
from keyhole.methods.recipe import Recipe

_FORMAT = 1


def write(cache: Cache, directory: str | Path, *, recipe: Recipe, model: PreTrainedModel) -> None:
    """Write what `cache` holds, made for `model` by `recipe`, to `directory`.

    Raises:
        UnsupportedCacheError: the cache has layers Keyhole does not keep, or holds nothing.
    """
    layers = served_layers(cache)
    saved = all(isinstance(layer, KeyholeLayer) for layer in cache.layers)
    if not saved or not layers or layers[0].length == 0:
        raise UnsupportedCacheError(
            "only a cache that holds tokens and whose layers are all Keyhole's can be saved; "
            f"this one has {len(layers)} of {len(cache.layers)} layers"
        )
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    (target / "cache.json").unlink(missing_ok=True)
    tensors = {
        f"{index}.{name}": tensor.contiguous()
        for index, layer in enumerate(layers)
        for name, tensor in layer.state().items()
    }
    partial = target / "cache.safetensors.partial"
    save_file(tensors, partial)
    partial.replace(target / "cache.safetensors")
    settings = {
        "format": _FORMAT,
        "method": str(recipe),
        "model": fingerprint(model),
        "indexed": [layer.indexed for layer in layers],
    }
    partial = target / "cache.json.partial"
    partial.write_text(json.dumps(settings, indent=1))
    partial.replace(target / "cache.json")


@dataclass(frozen=True)
class Saved:
    """A cache on disk: the recipe it is of, and what its layers held."""

    recipe: Recipe
    tensors: dict[str, Tensor]
    indexed: list[int]

    def restore(self, cache: Cache) -> None:
        """Fill a fresh cache made by the recipe."""
        for index, (layer, indexed) in enumerate(zip(cache.layers, self.indexed, strict=True)):
            prefix = f"{index}."
            held = {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}
            assert isinstance(layer, KeyholeLayer)
            layer.inner.restore(held, indexed)
            layer.is_initialized = True


def read(directory: str | Path, model: PreTrainedModel) -> Saved:
    """What was saved for `model`.

    Raises:
        FileNotFoundError: no complete cache there.
        ValueError: saved by another format or for another model, or damaged.
    """
    source = Path(directory)
    settings = json.loads((source / "cache.json").read_text())
    if settings["format"] != _FORMAT:
        raise ValueError(f"{source}: format {settings['format']} is not {_FORMAT}; save the cache again")
    if settings["model"] != fingerprint(model):
        raise ValueError(f"{source}: the cache belongs to another model; load the model it was made with")
    try:
        tensors = load_file(source / "cache.safetensors", device=str(model.device))
    except SafetensorError as error:
        raise ValueError(f"{source}: cache.safetensors is damaged ({error}); save the cache again") from error
    return Saved(Recipe.parse(settings["method"]), tensors, settings["indexed"])
