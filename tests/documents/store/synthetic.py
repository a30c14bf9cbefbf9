"""Documents whose tensors follow from their tokens, so that whoever reads them knows what they must be."""

import random
import zlib

import numpy as np
import torch

from keyhole.documents.store import BLOCK

FINGERPRINT = "a model; float32"


def tokens(seed, count, *, shared=0, shared_seed=0):
    """Token ids; the first `shared` are those of another seed."""
    first = np.random.default_rng(shared_seed).integers(0, 50_000, shared)
    return np.concatenate([first, np.random.default_rng(10_000 + seed).integers(0, 50_000, count - shared)])


def tensors(ids, start, stop, width=8):
    """What a model makes of the tokens `[start, stop)`: it depends on all before them too."""
    seed = zlib.crc32(np.asarray(ids[:stop], "<u4").tobytes())
    generator = torch.Generator().manual_seed(seed)
    return {f"{kind}.0": torch.randn(2, stop - start, width, generator=generator) for kind in "kv"}


def add(store, name, ids, *, seconds=1.0, until=None, width=8, **options):
    """Add a document, or only its first `until` blocks."""
    with store.begin(name, ids, FINGERPRINT, **options) as writer:
        done = 0
        while writer.next[0] < writer.total and done != until:
            start, stop = writer.next
            writer.append(tensors(ids, start, stop, width), seconds=seconds)
            done += 1
        if until is None:
            writer.finish()
        return done


def read(store, name, ids=None, width=8):
    """Open a document and check all of it; its tokens."""
    with store.open(name) as opened:
        check(opened.blocks, opened.document.tokens, width)
        assert sum(len(block.tokens) for block in opened.blocks) == len(opened.document.tokens)
        if ids is not None:
            assert opened.document.tokens.tolist() == list(ids)
        return opened.document.tokens


def check(blocks, ids, width=8):
    """Check what blocks hold of a document."""
    for place, block in enumerate(blocks):
        start = place * BLOCK
        stop = start + len(block.tokens)
        assert block.tokens.tolist() == list(ids[start:stop])
        for name, wanted in tensors(ids, start, stop, width).items():
            assert torch.equal(block.tensor(name), wanted)


def contents(store):
    """Names, tokens and stored counts of all documents."""
    return {(each.name, each.finished): (each.tokens.tolist(), each.stored) for each in store.documents()}


def picks(seed):
    return random.Random(seed)
