"""The programs of a run, layer by layer, so that all layers run the same code. Shapes are public, numbers
secret.

What passes between them stays in shares, by name: `hidden [T, E]`, weights `w.*`; of a layer `k` and `v`
`[Hkv, N, D]`,
points of clusters `fine` and `coarse`; and `marks` and `chosen`, by which a layer follows the one before.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
import jax.numpy as jnp
from jax import Array

from keyhole.private import sizes
from keyhole.private.cost import cheaper_gather
from keyhole.private.files import Shape
from keyhole.private.secure import attention, decoder, prompt, selection
from keyhole.private.settings import Settings

Named = dict[str, Array]


def embed(given: Named, shape: Shape, first: int) -> Named:
    """Hidden states of one-hot `tokens [T, V]` at positions from `first` on."""
    return {"hidden": decoder.embedded(given["tokens"], first, weights_in(given), shape)}


def head(given: Named, shape: Shape) -> Named:
    """The greedy `token [1]` after the last hidden state."""
    return {"token": decoder.next_token(given["hidden"], weights_in(given), shape)}


def prompt_layer(given: Named, shape: Shape, settings: Settings, leads: bool) -> Named:
    """A layer over a whole prompt, and what it keeps of it."""
    weights, hidden = weights_in(given), given["hidden"]
    evicted = sizes.eviction(settings, len(hidden))
    query, keys, values = decoder.projected(hidden, 0, weights, shape)
    newest = evicted.queries if evicted is not None and leads else 0
    prompted = prompt.attend_prompt(query, keys, values, newest)
    made = {"hidden": decoder.after_attention(hidden, prompted.out, weights, shape)}
    both = jnp.concatenate([keys, values], axis=-1)
    if evicted is not None:
        marks = given.get("marks")
        if prompted.importance is not None:
            marks = prompt.keep_marks(prompted.importance, evicted, settings)
        assert marks is not None
        both = prompt.kept_rows(both, marks, settings)
        made |= {"marks": marks} if settings.share else {}
    gone = sizes.dropped(settings, len(hidden))
    return made | _stored(_dropped(both, settings.sinks, gone), settings, leads, {})


def step_layer(given: Named, shape: Shape, settings: Settings, leads: bool, step: sizes.Step) -> Named:
    """A layer of one decode step, and its cache with the new token."""
    weights, hidden = weights_in(given), given["hidden"]
    query, keys, values = decoder.projected(hidden, step.position, weights, shape)
    keys = jnp.concatenate([given["k"], keys], axis=1)
    values = jnp.concatenate([given["v"], values], axis=1)
    made: Named = {}
    if step.reading is None:
        attended = attention.attend_all(query[:, :, 0], keys, values)
    else:
        chosen = _chosen(given, query[:, :, 0], settings, leads, step.reading)
        attended = _selected(query[:, :, 0], keys, values, chosen, settings, step.reading)
        made = {"chosen.hot": chosen.hot, "chosen.hidden": chosen.hidden} if settings.share else {}
    made["hidden"] = decoder.after_attention(hidden, attended[:, :, None], weights, shape)
    both = _dropped(jnp.concatenate([keys, values], axis=-1), settings.sinks, step.dropped)
    return made | _stored(both, settings, leads, given)


def weights_in(given: Named) -> Named:
    """The weights among named values, without their prefix."""
    return {name.removeprefix("w."): value for name, value in given.items() if name.startswith("w.")}


def _chosen(
    given: Named, query: Array, settings: Settings, leads: bool, reading: sizes.Reading
) -> selection.Chosen:
    if not leads:
        return selection.Chosen(given["chosen.hot"], given["chosen.hidden"])
    return selection.choose(query, given["fine"], given.get("coarse"), reading, settings)


def _selected(
    query: Array,
    keys: Array,
    values: Array,
    chosen: selection.Chosen,
    settings: Settings,
    reading: sizes.Reading,
) -> Array:
    rows = cheaper_gather(settings, reading, query.shape, keys.shape[1]) == "rows"
    attend = attention.attend_rows if rows else attention.attend_logits
    return attend(query, keys, values, chosen, reading, settings.fine)


def _dropped(both: Array, sinks: int, count: int) -> Array:
    """Without `count` slots after the sinks, as StreamingLLM."""
    return jnp.concatenate([both[:, :sinks], both[:, sinks + count :]], axis=1) if count else both


def _stored(both: Array, settings: Settings, leads: bool, before: Named) -> Named:
    """Keys and values, and the points of complete clusters, of which those known `before` are not made
    again."""
    keys, values = jnp.split(both, 2, axis=-1)
    stored = {"k": keys, "v": values}
    if settings.method != "mpcache" or not settings.selects or not leads:
        return stored
    levels = {"fine": settings.fine} | ({"coarse": settings.coarse} if settings.survivors < 1 else {})
    for level, size in levels.items():
        known = before.get(level)
        done = known.shape[1] if known is not None else 0
        if keys.shape[1] // size > done:
            new = selection.points(keys[:, done * size :], size, settings.alpha)
            known = new if known is None else jnp.concatenate([known, new], axis=1)
        if known is not None:
            stored[level] = known
    return stored
