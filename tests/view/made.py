"""Records that were made up, of any size, so that a page can be compared with what is known."""

import numpy as np

from keyhole.view.coding import encode_set
from keyhole.view.record import Record, Step

WORDS = (
    "the",
    "whale",
    "came",
    "up",
    "again",
    "and",
    "boat",
    "gone",
    "under",
    "sky",
    "of",
    "brass",
    "nobody",
)


def text_of(tokens, seed=0):
    """So many words, in sentences and paragraphs."""
    random = np.random.default_rng(seed)
    words = [WORDS[at] for at in random.integers(0, len(WORDS), tokens)]
    for at in range(11, tokens, 12):
        words[at] += "."
    for at in range(59, tokens, 60):
        words[at] += "\n\n"
    return [word if word.endswith("\n") else word + " " for word in words]


def made(
    *,
    tokens=400,
    steps=3,
    layers=3,
    heads=2,
    share=0.05,
    exact=True,
    block=1,
    words=None,
    seed=0,
    method="pqcache",
):
    """A record of a made-up run; each head reads the first 4, the newest 8 and a share of the rest."""
    random = np.random.default_rng(seed)
    pieces = (words or text_of(tokens, seed)) + [f"answer{step} " for step in range(steps)]
    prompt = len(pieces) - steps
    spans = np.cumsum([0] + [len(piece.encode("utf-16-le")) // 2 for piece in pieces])
    taken = []
    for step in range(steps):
        length = prompt + step
        sets = [
            np.flatnonzero(
                (random.random(length) < share) | (np.arange(length) < 4) | (np.arange(length) >= length - 8)
            )
            for _ in range(layers * heads)
        ]
        counts = np.array([len(one) for one in sets], np.uint32).reshape(layers, heads)
        missed = random.random((layers, heads)).astype(np.float32) / 5
        best = tuple((int(at), 0.01) for at in np.sort(random.permutation(length)[:10]))
        taken.append(
            Step(
                first=length - 1,
                queries=1,
                token=length,
                sets=tuple(encode_set(np.unique(one // block)) for one in sets),
                union=encode_set(np.unique(np.concatenate(sets))),
                counts=counts,
                held=np.full((layers, heads), length, np.uint32),
                missed=missed,
                exact=missed if exact else None,
                nbytes=counts.sum(1).astype(float) * 256,
                cached=np.zeros(layers, np.float32),
                best=best if exact else (),
                absent=best if exact else (),
            )
        )
    return Record(
        model="made",
        method=method,
        question="What was read?",
        text="".join(pieces),
        spans=np.stack([spans[:-1], spans[1:]], axis=1),
        prompt=prompt,
        document=(0, int(spans[prompt - 10])),
        layers=tuple(range(layers)),
        heads=heads,
        block=block,
        sinks=4,
        window=8,
        tiers=("device",) * layers,
        steps=tuple(taken),
    )
