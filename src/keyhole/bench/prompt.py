"""`bench prompt`: a whole model's prompt, which Keyhole must not make slower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from keyhole.bench.checks import check_close
from keyhole.bench.models import SDPA, forward, plain_cache, shape_case, use_keyhole, use_sdpa, weight_bytes
from keyhole.bench.result import Result, Sizes, compare
from keyhole.bench.shapes import Shape
from keyhole.engines.transformers import KeyholeCache
from keyhole.engines.transformers.sizes import attention_sizes
from keyhole.methods.recipe import Recipe
from keyhole.prefill import DensePrefill
from keyhole.tuning.machine import implementation, require_memory
from keyhole.tuning.timing import CacheFlusher, Candidate

_COMPARED = 64  # newest tokens of the prompt whose predictions are compared


def random_prompt(shape: Shape, tokens: int, dtype: str, seed: int) -> tuple[PreTrainedModel, Tensor]:
    """A model of random weights, and random ids `[1, T]`.

    Raises:
        ValueError: an unknown dtype, or it does not fit into memory.
    """
    case = shape_case(shape, tokens, dtype, 0, seed)
    needed = shape.parameters * case.torch_dtype.itemsize + 2 * shape.layers * case.cache_bytes
    require_memory(f"a model of {shape.layers} layers and {tokens} tokens", needed)
    torch.manual_seed(seed)
    return shape.model(case.torch_dtype, tokens), torch.randint(shape.vocabulary, (1, tokens))


@torch.no_grad()
def prompt(
    model: PreTrainedModel,
    ids: Tensor,
    methods: Sequence[str],
    *,
    rounds: int,
    flusher: CacheFlusher,
    note: str,
) -> list[Result]:
    """Time the prompt `ids [1, T]`, in one call and into an empty cache, by each method and by transformers.

    Args:
        note: what weights and tokens are.

    Raises:
        ValueError: a method cannot be read, or the model cannot be served.
        CheckFailedError: a prompt computed exactly has other logits than transformers'.
    """
    held: list[Cache] = [plain_cache(model)]
    call = forward(model, ids, lambda: held[0], predictions=_COMPARED)
    sizes, cached = _sizes(model, ids)
    logits: dict[str, Tensor] = {}

    def candidate(name: str, impl: str, start: Callable[[], None]) -> Candidate:
        def run() -> None:
            logits[name] = call()

        moved = weight_bytes(model) + cached
        return Candidate(name, impl, run, moved, ids.shape[1], before=start, after=lambda: use_sdpa(model))

    def start_plain() -> None:
        held[:] = [plain_cache(model)]

    def start_keyhole(recipe: Recipe) -> None:
        held[:] = [KeyholeCache(model, recipe)]
        use_keyhole(model)

    recipes = [Recipe.parse(method) for method in methods]
    use_sdpa(model)
    baseline = candidate(SDPA, "torch", start_plain)
    ours = [candidate(str(each), implementation(), partial(start_keyhole, each)) for each in recipes]
    notes = [f"{note}; bytes are those of weights and cache"]
    result = compare("prompt", sizes, ours, [baseline], rounds=rounds, flusher=flusher, notes=notes)
    for recipe in recipes:
        result.notes.extend(_differs(recipe, logits[str(recipe)], logits[SDPA], model.dtype))
    return [result]


def _sizes(model: PreTrainedModel, ids: Tensor) -> tuple[Sizes, int]:
    """The sizes of a row, and the bytes of keys and values."""
    attention = attention_sizes(model.config)
    assert attention is not None  # what can be served has heads
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    cached = 2 * layers * attention.kv_heads * attention.head_dim * ids.shape[1] * model.dtype.itemsize
    return Sizes(ids.shape[1], *attention, str(model.dtype).removeprefix("torch.")), cached


def _differs(recipe: Recipe, found: Tensor, expected: Tensor, dtype: torch.dtype) -> list[str]:
    """What to say about logits that are not to be exact; raises CheckFailedError for others."""
    if isinstance(recipe.layers(1)[0].prefill, DensePrefill):
        check_close(f"the prompt's last logits by {recipe}", found[-1], expected[-1], dtype)
        return []
    ours, theirs = (logits.float().log_softmax(-1) for logits in (found, expected))
    kl = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    return [f"{recipe}: KL {kl:.4f} from transformers, a mean over the last {len(found)} predictions"]
