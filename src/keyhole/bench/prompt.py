"""`bench prompt`: a whole model's prompt, which Keyhole must not make slower."""

from __future__ import annotations

import torch
from transformers import Cache

from keyhole.bench.checks import check_close
from keyhole.bench.layers import layer_sizes
from keyhole.bench.models import (
    SDPA,
    forward,
    keyhole_cache,
    plain_cache,
    shape_case,
    use_keyhole,
    use_sdpa,
    weight_bytes,
)
from keyhole.bench.result import Result, compare
from keyhole.bench.shapes import Shape
from keyhole.bench.step_candidates import once
from keyhole.methods.recipe import Recipe
from keyhole.prefill import DensePrefill
from keyhole.tuning.machine import implementation, require_memory
from keyhole.tuning.timing import CacheFlusher, Candidate


@torch.no_grad()
def prompt(
    shape: Shape, method: str, *, tokens: int, dtype: str, rounds: int, flusher: CacheFlusher, seed: int = 0
) -> list[Result]:
    """Time a prompt into an empty cache.

    Raises:
        ValueError: the method cannot be read, or the model does not fit into memory.
        CheckFailedError: a prompt computed exactly has other logits than transformers'.
    """
    case = shape_case(shape, tokens, dtype, 0, seed)
    recipe = Recipe.parse(method)
    needed = shape.parameters * case.torch_dtype.itemsize + 2 * shape.layers * case.cache_bytes
    require_memory(f"a model of {shape.layers} layers and {tokens} tokens", needed)
    torch.manual_seed(seed)
    model = shape.model(case.torch_dtype, tokens)
    ids = torch.randint(shape.vocabulary, (1, tokens))
    moved = weight_bytes(model) + shape.layers * case.cache_bytes
    held: list[Cache] = [plain_cache(model)]

    def start_plain() -> None:
        use_sdpa(model)
        held[:] = [plain_cache(model)]

    def start_keyhole() -> None:
        use_keyhole(model)
        held[:] = [keyhole_cache(model, recipe.layers(shape.layers))]

    def leave() -> None:
        use_sdpa(model)

    run = forward(model, ids, lambda: held[0])
    ours = Candidate(str(recipe), implementation(), run, moved, tokens, before=start_keyhole, after=leave)
    baseline = Candidate(SDPA, "torch", run, moved, tokens, before=start_plain)
    if isinstance(recipe.layers(1)[0].prefill, DensePrefill):
        check_close("the prompt's last logits", once(ours), once(baseline), case.torch_dtype)
    notes = [f"random weights, {shape.layers} layers; bytes are those of weights and cache"]
    return [
        compare("prompt", layer_sizes(case), [ours], [baseline], rounds=rounds, flusher=flusher, notes=notes)
    ]
