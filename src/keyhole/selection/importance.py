"""The importance head of NOSA: how much a token matters whatever is asked, from its values alone.

Source: "NOSA: Native and Offloadable Sparse Attention", arXiv 2510.13602.

Legend: B batch, Hkv KV heads, T tokens, Dv size of a value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole.core.artifacts import ArtifactFiles
from keyhole.core.errors import SavedStateError, SpecError
from keyhole.core.model_info import ModelInfo

TRAIN = "keyhole train --selection nosa"  # the command that makes a head
_FILES = ArtifactFiles("importance", method="nosa", format=1, command=TRAIN)


class ImportanceHead(NamedTuple):
    """The head of one layer: `e = scale * softplus(weight @ u + bias)`, u the values of all KV heads.

    Attributes:
        weight: float32 `[Hkv, Hkv * Dv]`, W of the paper.
        scale: float32 `[Hkv]`, A of the paper; where it is 0 attention is that of the model without a head.
        bias: float32 `[Hkv]`; None for models whose attention has no biases.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None = None

    @classmethod
    def initial(
        cls, kv_heads: int, value_dim: int, *, bias: bool, generator: torch.Generator
    ) -> ImportanceHead:
        """One that changes nothing yet: A is 0, and W is drawn as `torch.nn.Linear` draws it."""
        bound = (kv_heads * value_dim) ** -0.5
        weight = torch.empty(kv_heads, kv_heads * value_dim).uniform_(-bound, bound, generator=generator)
        return cls(weight, torch.zeros(kv_heads), torch.zeros(kv_heads) if bias else None)

    @property
    def idle(self) -> bool:
        """Whether every token's importance is 0."""
        return not bool(self.scale.any())

    def __call__(self, values: Tensor) -> Tensor:
        """The importance float32 `[B, Hkv, T]` of tokens by `values [B, Hkv, T, Dv]`.

        Differentiable. It is computed once, when a token comes, and never revised.

        Raises:
            SpecError: values of other sizes than the head was made for.
        """
        _, heads, _, size = values.shape
        if self.weight.shape != (heads, heads * size):
            raise SpecError(
                f"an importance head {list(self.weight.shape)} does not fit {heads} KV heads of {size}; "
                f"train one for this model with `{TRAIN}`"
            )
        bias = None if self.bias is None else self.bias.to(values.device)
        joined = values.transpose(1, 2).flatten(2).float()
        raised = F.softplus(F.linear(joined, self.weight.to(values.device), bias))
        return (raised * self.scale.to(values.device)).transpose(1, 2)


def write_heads(directory: str | Path, heads: dict[int, ImportanceHead], *, model: str, **made: Any) -> None:
    """Write `importance.json` and the safetensors file it names.

    Args:
        heads: by their layers' places in the model.
        model: the fingerprint of the model, with the weights and in the type it will be loaded with.
        made: what else there is to say about how they were made, as JSON; `rule` are the fields of the
            `BlockRule` that they were trained by.
    """
    tensors = {
        f"{place}.{name}": tensor.detach().float().cpu().contiguous()
        for place, head in heads.items()
        for name, tensor in head._asdict().items()
        if tensor is not None
    }
    _FILES.write(directory, tensors, model=model, layers=sorted(heads), **made)


def read_heads(directory: str | Path, info: ModelInfo, **rule: int) -> list[ImportanceHead]:
    """The heads of a model's served layers; without a model the first ones of the file, in order.

    Args:
        rule: fields of the `BlockRule` that blocks are to be chosen by.

    Raises:
        SavedStateError: there are none, they are damaged, made for another model, or trained by another rule.
    """
    settings = _FILES.settings(directory, info)
    trained = settings.get("rule", {})
    for name, value in rule.items():
        if trained.get(name, value) != value:
            raise SavedStateError(
                f"{directory}: the importance heads were trained with {name}={trained[name]}, not {value}; "
                f"give nosa({name}={trained[name]})"
            )
    return _FILES.of_layers(directory, _FILES.read(directory, settings, _heads), info)


def _heads(tensors: dict[str, Tensor]) -> dict[int, ImportanceHead]:
    """Heads by layer.

    Raises:
        ValueError: shapes or types that no head has.
        KeyError: a tensor is missing.
    """
    heads = {}
    for place in sorted({int(name.split(".")[0]) for name in tensors}):
        weight, scale, bias = (tensors.get(f"{place}.{name}") for name in ImportanceHead._fields)
        if weight is None or scale is None:
            raise KeyError(f"layer {place} lacks weight or scale")
        _check(place, weight, scale, bias)
        heads[place] = ImportanceHead(weight, scale, bias)
    return heads


def _check(place: int, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    vectors = [scale] if bias is None else [scale, bias]
    fitting = (
        all(part.dtype == torch.float32 for part in (weight, *vectors))
        and weight.dim() == 2
        and weight.numel() > 0
        and weight.shape[1] % weight.shape[0] == 0
        and all(part.shape == weight.shape[:1] for part in vectors)
    )
    if not fitting:
        raise ValueError(
            f"weight {list(weight.shape)} and scale {list(scale.shape)} of layer {place} are not float32 "
            "[Hkv, Hkv * Dv] and [Hkv]"
        )
