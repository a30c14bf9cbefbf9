"""What is measured: the sizes of one attention layer and how much of it is read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from keyhole.attention import Logits
from keyhole.core.budget import Budget
from keyhole.methods.recipe import Recipe
from keyhole.tuning.synthetic import Synthetic

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One layer with `tokens` in its cache.

    Attributes:
        read_tokens: tokens a step reads beside sinks and window; 0 leaves the method its own budget.
        batch: sequences, each of so many tokens.
        device: where they lie.
    """

    tokens: int
    query_heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    dtype: str = "float32"
    read_tokens: int = 2048
    seed: int = 0
    batch: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("tokens", "query_heads", "kv_heads", "head_dim", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is out of range; give at least 1")
        if self.query_heads % self.kv_heads:
            raise ValueError(
                f"{self.query_heads} query heads are not a multiple of {self.kv_heads} KV heads; give a "
                "multiple"
            )
        if self.read_tokens < 0:
            raise ValueError(
                f"read_tokens={self.read_tokens} is out of range; give 0 for the method's own budget, or more"
            )
        check_dtype(self.dtype)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values, all KV heads."""
        return 2 * self.kv_heads * self.head_dim * self.torch_dtype.itemsize

    @property
    def cache_bytes(self) -> int:
        """Bytes of all keys and values."""
        return self.batch * self.tokens * self.token_bytes

    @property
    def logits(self) -> Logits:
        return Logits(self.head_dim**-0.5)

    def source(self, layer: int = 0) -> Synthetic:
        """The stream of tokens of a layer."""
        return Synthetic(
            self.kv_heads,
            self.head_dim,
            dtype=self.torch_dtype,
            device=self.device,
            seed=self.seed + layer,
            batch=self.batch,
        )

    def recipe(self, method: str | Recipe) -> Recipe:
        """A method, reading what this case asks for."""
        return with_budget(Recipe.parse(method), self.read_tokens)


def check_dtype(dtype: str) -> None:
    """Raise ValueError for a dtype that is not measured."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")


def with_budget(recipe: Recipe, tokens: int) -> Recipe:
    """The recipe, reading so many tokens beside sinks and window, or keeping so many; 0 changes nothing."""
    chosen = recipe.retrieval or recipe.eviction
    if not tokens or chosen is None:
        return recipe
    changed = replace(chosen, budget=Budget(tokens=tokens))
    return Recipe(tuple(changed if stage is chosen else stage for stage in recipe.stages))
