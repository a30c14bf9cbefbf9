import pytest
import torch

from keyhole.selection.quantisers.drift import DriftWatch, Refits


def watch_of(errors):
    watch = DriftWatch()
    watch.learn(errors)
    return watch


def refits_of(errors, padding):
    refits = Refits(sample=1000)
    refits.learn(errors, padding, range(len(errors)))
    return refits


def steady(count, level=1.0):
    """Errors that vary by a tenth, always in the same way."""
    return level * (1 + 0.1 * torch.arange(count).remainder(7).sub(3).div(3)).view(1, -1).expand(2, -1)


def test_errors_as_before_are_no_drift():
    watch = watch_of(steady(1000))
    for _ in range(50):
        watch.watch(steady(31))
    assert not watch.exceeded


def test_larger_errors_are_drift():
    watch = watch_of(steady(1000))
    watch.watch(steady(200, level=2.0))
    assert watch.exceeded


def test_a_few_bad_tokens_are_no_drift():
    watch = watch_of(steady(1000))
    errors = steady(200).clone()
    errors[..., 10:12] = 5.0
    watch.watch(errors)
    assert not watch.exceeded


@pytest.mark.parametrize("piece", [1, 5, 127, 128, 129, 1000])
def test_pieces_add_up(piece):
    """Drift is seen after the same token however the errors come."""
    watch, errors = watch_of(steady(1000)), steady(1000).clone()
    errors[..., 640:768] *= 3
    seen = 0
    for part in errors.split(piece, dim=-1):
        watch.watch(part)
        seen += part.shape[-1]
        if watch.exceeded:
            break
    assert watch.exceeded
    assert 768 <= seen < 768 + piece


def test_one_head_is_enough():
    watch, errors = watch_of(steady(1000)), steady(256).clone()
    errors[1] *= 3
    watch.watch(errors)
    assert watch.exceeded


def test_the_last_tokens_do_not_widen_the_range():
    """1025 tokens: one is left over after eight blocks; its error alone is no measure of anything."""
    errors = steady(1025).clone()
    errors[..., -1] = 100.0
    watch = watch_of(errors)
    watch.watch(steady(256, level=2.0))
    assert watch.exceeded


@pytest.mark.parametrize("count", [1, 5, 127])
def test_less_than_a_block_can_be_learnt(count):
    watch = watch_of(steady(count))
    watch.watch(steady(256, level=9.0))
    assert watch.exceeded


def test_rows_keep_their_range_when_reordered():
    one, ten = steady(500), steady(500, level=10.0)
    refits = refits_of(torch.stack([one, ten]), [0, 0])
    refits.watch(torch.stack([one, ten])[..., :100])
    refits.reorder(torch.tensor([1, 0, 1]))
    refits.watch(torch.stack([ten, one, ten])[..., :156])
    assert refits.due(9999) == []
    refits.watch(torch.stack([ten, ten, one])[..., :128])
    assert refits.due(9999) == [1]


def test_rows_that_were_one_go_apart():
    refits = refits_of(steady(500).unsqueeze(0), [0])
    refits.watch(steady(500).unsqueeze(0)[..., :100])
    refits.reorder(torch.tensor([0, 0]))
    refits.watch(torch.stack([steady(28, level=9.0), steady(28)]))
    assert refits.due(9999) == [0]


@pytest.mark.parametrize("padding", [0, 1, 100, 127, 128, 300])
def test_a_padded_row_is_due_when_it_would_be_alone(padding):
    errors = torch.rand(1, 2, 2000, generator=torch.Generator().manual_seed(padding)).exp()
    unused = torch.nn.functional.pad(errors[..., :600], (padding, 0))
    alone, padded = refits_of(errors[..., :600], [0]), refits_of(unused, [padding])
    assert torch.equal(alone.state()["worst_error"], padded.state()["worst_error"])
    for at, part in enumerate((errors[..., 600:] * torch.linspace(1, 3, 1400)).split(50, -1)):
        alone.watch(part)
        padded.watch(part)
        length = 600 + 50 * (at + 1)
        assert alone.due(length) == padded.due(padding + length)
    assert alone.due(2000) == [0]


def test_state_goes_round():
    refits, other = refits_of(steady(500).unsqueeze(0), [0]), Refits(1000)
    other.restore(refits.state(), 500)
    other.watch(steady(128).unsqueeze(0))
    assert other.due(9999) == []
    other.watch(steady(128, level=3.0).unsqueeze(0))
    assert other.due(9999) == [0]


def test_watching_before_learning_is_refused():
    with pytest.raises(ValueError, match="learn first"):
        DriftWatch().watch(steady(3))
    assert Refits(1).state() == {}
