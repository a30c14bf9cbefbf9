"""Random numbers by position, step, layer and head."""

import torch

from keyhole.core.layout import regions
from keyhole.selection.sampled.chance import uniform

CPU = torch.device("cpu")


def numbers(length=4096, padding=(0,), heads=2, layer=0):
    return uniform(regions(length, padding, 2, 6, CPU), length, heads, layer)


def test_they_are_uniform():
    found = numbers(100_000, heads=1).flatten().double()
    assert 0 < float(found.min()) < 1e-4
    assert 1 - 1e-4 < float(found.max()) <= 1
    even = (torch.arange(len(found)) + 0.5) / len(found)
    # Kolmogorov and Smirnov's distance, whose 99.9% quantile this is.
    assert float((found.sort().values - even).abs().max()) < 1.95 / len(found) ** 0.5


def test_they_depend_on_who_asks():
    found = [numbers()[0, 0], numbers()[0, 1], numbers(layer=1)[0, 0], numbers(4097)[0, 0, :4096]]
    found += [found[0].roll(1)]
    alike = torch.corrcoef(torch.stack(found)).fill_diagonal_(0).abs()
    assert float(alike.max()) < 4 / 4096**0.5


def test_neighbours_are_independent():
    """Of steps that follow each other, each has numbers of its own for a token."""
    steps = torch.stack([numbers(length, heads=1)[0, 0, :64] for length in range(100, 2100)])
    alike = torch.corrcoef(steps.T).fill_diagonal_(0)
    assert float(alike.abs().max()) < 5 / 2000**0.5
    assert abs(float(torch.corrcoef(torch.stack([steps[1:].flatten(), steps[:-1].flatten()]))[0, 1])) < 0.02


def test_rows_are_as_alone():
    both = numbers(300, padding=(0, 40))
    assert torch.equal(both[0], numbers(300)[0])
    assert torch.equal(both[1, :, 40:], numbers(260)[0])


def test_they_are_the_same_ones_for_ever():
    """A saved cache goes on as on another machine."""
    found = numbers(10, heads=1)[0, 0, :3]
    assert torch.equal(found * 2**24, (found * 2**24).round())
    expected = torch.tensor(EXPECTED)
    assert torch.equal(found, expected)


def _mixed(number):
    mask = 2**64 - 1
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & mask
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & mask
    return number ^ (number >> 31)


def _written_out(position, step, layer=0, head=0):
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15
    asking = _mixed((_mixed((step * golden + layer) & mask) + head) & mask)
    return ((_mixed((position * golden + asking) & mask) >> 40) + 1) / 2**24


EXPECTED = [_written_out(position, 10) for position in range(3)]
