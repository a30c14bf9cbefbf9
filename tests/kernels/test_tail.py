"""Attention over the rest of clusters, against tokens written out."""

import numpy as np
import pytest
import torch

from keyhole.kernels.tail.reference import corrected, tail_attention
from keyhole.kernels.tail.types import Read, Summed


def case(rows=3, heads=2, size=20, clusters=9, tokens=150, read=40, dtype=torch.float32, seed=0):
    """Random tokens in clusters, some in none, of which some are read; every seventh of these is filling."""
    random = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(rows, tokens, size, generator=random).to(dtype) for _ in range(2))
    labels = torch.randint(-1, clusters, (rows, tokens), generator=random)
    one_hot = torch.nn.functional.one_hot(labels + 1, clusters + 1)[..., 1:].float()
    kind = torch.float32 if dtype == torch.float32 else torch.bfloat16
    sums = [(one_hot.transpose(1, 2) @ part.float()).to(kind) for part in (keys, values)]
    summed = Summed(*sums, one_hot.sum(1).int())
    places = torch.stack([torch.randperm(tokens, generator=random)[:read] for _ in range(rows)])
    own = labels.gather(1, places)
    own[:, ::7] = -1  # filling
    query = torch.randn(rows, heads, size, generator=random)
    spread = torch.rand(rows, heads, clusters, generator=random)
    return query, summed, Read(keys, values, places.int(), own.int()), spread, labels


def rest(query, read, spread, labels, scale, softcap):
    """The same by one token after the other, float64."""
    outs, lses = [], []
    for row in range(len(query)):
        taken = {int(p) for p, own in zip(read.places[row], read.labels[row], strict=True) if own >= 0}
        left = [t for t in range(labels.shape[1]) if labels[row, t] >= 0 and t not in taken]
        for head in range(query.shape[1]):
            logs, rows = [], []
            for token in left:
                mine = [t for t in left if labels[row, t] == labels[row, token]]
                logit = scale * (read.keys[row, mine].double().mean(0) @ query[row, head].double())
                logit = logit if softcap is None else softcap * torch.tanh(logit / softcap)
                logs.append(logit + spread[row, head, labels[row, token]].double())
                rows.append(read.values[row, mine].double().mean(0))
            logs = torch.stack(logs)
            outs.append(logs.softmax(0) @ torch.stack(rows))
            lses.append(logs.logsumexp(0))
    shape = query.shape[:2]
    return torch.stack(outs).view(*shape, -1).float(), torch.stack(lses).view(shape).float()


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_tokens_written_out(softcap):
    query, summed, read, spread, labels = case(tokens=60, read=20)
    found = tail_attention(query, summed, read, spread, scale=0.3, softcap=softcap)
    torch.testing.assert_close(found, rest(query, read, spread, labels, 0.3, softcap), rtol=1e-4, atol=1e-5)


def test_nothing_left_is_an_empty_part():
    query, summed, read, spread, labels = case(tokens=40, read=40)
    read = read._replace(labels=labels.gather(1, read.places.long()).int())
    out, lse = tail_attention(query, summed, read, spread, scale=0.3)
    assert (lse == -torch.inf).all()
    torch.testing.assert_close(out, torch.zeros_like(out), rtol=0, atol=0)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("kind", [torch.int16, torch.int32])
def test_corrected_logits_have_the_mean_keys_logit(softcap, kind):
    """One token after the other: its own estimate, less its cluster's mean, plus the mean key's logit."""
    query, summed, read, _, labels = case(tokens=70)
    estimates = torch.randn(3, 2, 70, generator=torch.Generator().manual_seed(1))
    found = corrected(estimates, query, summed, labels.to(kind), scale=0.3, softcap=softcap)
    for row, head, token in np.ndindex(3, 2, 70):
        expected = estimates[row, head, token].double()
        if labels[row, token] >= 0:
            mine = labels[row] == labels[row, token]
            logit = 0.3 * (read.keys[row, mine].double().mean(0) @ query[row, head].double())
            logit = logit if softcap is None else softcap * torch.tanh(logit / softcap)
            expected = expected + logit - estimates[row, head, mine].double().mean()
        torch.testing.assert_close(found[row, head, token].double(), expected, rtol=1e-4, atol=1e-4)


def test_exact_logits_stay_as_they_are():
    query, summed, read, _, labels = case()
    exact = 0.3 * query @ read.keys.mT
    torch.testing.assert_close(
        corrected(exact, query, summed, labels, scale=0.3), exact, rtol=1e-4, atol=1e-4
    )
