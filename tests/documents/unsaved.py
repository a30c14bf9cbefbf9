"""What a stored document must answer: one run from its first token to the answer's last, without a store."""

import numpy as np

from keyhole.documents.form import behind, form_of
from keyhole.documents.reading import learn_masses
from keyhole.engines.transformers import KeyholeCache, attach, served_layers
from keyhole.engines.transformers.cache import request_of
from keyhole.generation.decoding import build_index, decode, prefill
from keyhole.generation.text import stop_tokens
from keyhole.storage.placed import PlacedStorage

BLOCK, TOGETHER = 256, 32

TEXT = " ".join(
    f"Line {n}: the {noun} of {place} keeps {n * 37 % 101} keys in box {n * 7 % 13}."
    for n in range(28)
    for noun, place in [(["warden", "clerk", "baker"][n % 3], ["Bergen", "Turin", "Split", "Ghent"][n % 4])]
)
QUESTION = "Line 7: the clerk of Ghent keeps"


def unsaved_answer(loaded, recipe, *, text=TEXT, question=QUESTION, limit=8, piece=BLOCK, exact=False):
    """Token ids of the answer, greedy."""
    ids = form_of(loaded.tokenizer, text).ids
    more = np.asarray(behind(loaded.tokenizer, text, question))
    with attach(loaded.model, recipe):
        cache = KeyholeCache(loaded.model, recipe)
        for start in range(0, len(ids), piece):
            part = ids[start : start + piece]
            cache.prompt_length = start + len(part)
            prefill(loaded.model, _row(part), cache, chunk=piece)
            if piece == BLOCK == len(part):
                seal(cache)
        build_index(loaded.model, cache)
        learn_masses(loaded, recipe, cache)  # a mass is learnt at the end of the text, not at the question
        request_of(cache).together = not exact
        cache.prompt_length = len(ids) + len(more)
        parts = np.array_split(more, -(-len(more) // TOGETHER))
        last = int(more[-1]) if exact else _row(parts[-1])
        before = more[:-1] if exact else more[: -len(parts[-1])]
        prefill(loaded.model, _row(before), cache, chunk=1024 if exact else TOGETHER)
        stops = stop_tokens(*loaded)
        return tuple(one.id for one in decode(loaded.model, last, cache, limit=limit, stops=stops))


def seal(cache):
    for layer in served_layers(cache):
        if isinstance(layer.storage, PlacedStorage):
            layer.storage.seal()


def _row(ids):
    import torch

    return torch.from_numpy(np.asarray(ids, np.int64))[None]
