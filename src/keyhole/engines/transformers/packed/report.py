"""What of a model's weights is packed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from keyhole.engines.transformers.packed.modules import plain_packing

_NAMES = {"INT8": "int8", "INT4": "int4 (scale)", "INT4_MIN": "int4 (scale, minimum)"}


@dataclass(frozen=True)
class Summary:
    """Modules by the form of their weights, and bytes; what is shared counts once."""

    modules: Counter[str]
    packed_bytes: int
    other_bytes: int

    def __str__(self) -> str:
        forms = ", ".join(f"{count} {name}" for name, count in self.modules.items()) or "none"
        sizes = f"{self.packed_bytes / 1e6:.1f} MB packed, {self.other_bytes / 1e6:.1f} MB not"
        return f"packed modules: {forms}; {sizes}"


def summary(model: nn.Module) -> Summary:
    """What of a model's weights is packed."""
    modules: Counter[str] = Counter()
    sizes: dict[int, tuple[int, bool]] = {}
    for module in model.modules():
        packing = plain_packing(module)
        if packing is not None:
            modules[_NAMES[packing.name]] += 1
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        for tensor in own:
            if tensor.numel():
                sizes[tensor.data_ptr()] = tensor.nbytes, packing is not None
    packed = sum(size for size, here in sizes.values() if here)
    return Summary(modules, packed, sum(size for size, _ in sizes.values()) - packed)
