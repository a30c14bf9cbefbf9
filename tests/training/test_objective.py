"""The loss against its definition, written out."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole.training.batches import LABELS
from keyhole.training.objective import objective

KEY, COMMON, FREQUENT = (LABELS.index(n) for n in ("multikey", "common_words", "frequent_words"))
VOCABULARY = 7


def written_out(logits, tokens, asked):
    """One asked token after the other."""
    places = [(b, i) for b, row in enumerate(asked.tolist()) for i, a in enumerate(row) if a]
    labels = [int(asked[place]) for place in places]
    loss, weights, right = 0.0, 0.0, []
    for n, (b, i) in enumerate(places):
        good = {int(tokens[b, i])}
        if labels[n] in (COMMON, FREQUENT):
            good |= {int(tokens[b, j]) for j in range(i, tokens.shape[1]) if asked[b, j] == labels[n]}
        share = sum(float(logits[n].softmax(-1)[token]) for token in good)
        weight = labels.count(labels[n]) ** -0.5
        loss, weights = loss - weight * torch.log(torch.tensor(share)), weights + weight
        right.append(int(logits[n].argmax()) in good)
    return loss / weights, right


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 3), length=st.integers(1, 9))
def test_as_written_out(seed, rows, length):
    generator = torch.Generator().manual_seed(seed)
    # Different within a row, as the items of a list are.
    tokens = torch.stack([torch.randperm(max(VOCABULARY, length), generator=generator) for _ in range(rows)])
    tokens = tokens[:, :length]
    asked = torch.tensor([0, 1, KEY, COMMON, FREQUENT])[torch.randint(5, tokens.shape, generator=generator)]
    asked[0, 0] = COMMON
    logits = torch.randn(int((asked > 0).sum()), max(VOCABULARY, length), generator=generator)
    loss, right = objective(logits, tokens, asked)
    expected, expected_right = written_out(logits, tokens, asked)
    torch.testing.assert_close(loss, torch.as_tensor(expected), rtol=1e-4, atol=1e-5)
    assert right.tolist() == expected_right


def test_any_remaining_item_costs_the_same():
    tokens, asked = torch.tensor([[1, 2, 3]]), torch.full((1, 3), COMMON)
    logits = torch.full((3, VOCABULARY), -9.0)
    logits[0, 3], logits[1, 2], logits[2, 3] = 9.0, 9.0, 9.0
    loss, right = objective(logits, tokens, asked)
    assert right.all()
    assert loss < 1e-3
    logits[1, 2], logits[1, 1] = -9.0, 9.0  # the first item once more
    loss, right = objective(logits, tokens, asked)
    assert right.tolist() == [True, False, True]
    assert loss > 1
