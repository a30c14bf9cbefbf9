import numpy as np
import pytest
import torch

from keyhole.core.budget import Budget
from keyhole.selection import ExactSelector
from tests import oracles
from tests.steps import competing, make_step


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("groups", [1, 2, 7])
@pytest.mark.parametrize("size", [8, 24, 128])
def test_reads_the_exact_best(size, groups, softcap):
    generator = torch.Generator().manual_seed(size + groups)
    query = 3 * torch.randn(2, 2 * groups, size, generator=generator)
    keys = torch.randn(2, 2, 63, size, generator=generator)
    anchor = torch.randn(2, 2 * groups, generator=generator)
    first = torch.tensor([2, 7], dtype=torch.int32)
    step = make_step(query, keys, first, 60, anchor, Budget(tokens=9), softcap=softcap)
    selection = ExactSelector().select(step)
    for row in range(2):
        ours = step.storage.scores(step.query, step.logits)[row].flatten(0, 1)
        truth = oracles.exact_logits(
            oracles.array(query[row]), oracles.array(keys[row]), scale=size**-0.5, softcap=softcap
        )
        np.testing.assert_allclose(ours, truth, rtol=1e-4, atol=1e-5)
        start = int(first[row])
        shares, _ = oracles.group_shares(truth[:, start:60], oracles.array(anchor[row])[:, None], 2)
        for head in range(2):
            best = sorted(start + n for n in oracles.top_k(shares[head], 9))
            assert selection.slots[row, head].tolist() == best


def test_keeps_no_index():
    selector, keys = ExactSelector(), torch.randn(1, 2, 31, 8)
    selector.build(keys, competing([0], 31, 31))
    selector.append(keys[:, :, :5])
    selector.crop(33)
    assert selector.length == 33
    assert selector.nbytes == 0
    assert selector.state() == {}
    selector.restore({}, 12)
    assert selector.length == 12


def test_reads_every_key():
    keys = torch.randn(1, 2, 31, 8, dtype=torch.bfloat16)
    step = make_step(torch.randn(1, 4, 8), keys, [0], 30, torch.zeros(1, 4), Budget(tokens=1))
    assert ExactSelector().bytes_read(step) == 30 * 8 * 2
