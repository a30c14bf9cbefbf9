import pytest
import torch

from keyhole.selection.quantisers.drift import DriftWatch


def watch_of(errors, rows=1):
    watch = DriftWatch()
    watch.learn(errors.expand(rows, 2, -1))
    return watch


def steady(count, level=1.0):
    """Errors that vary by a tenth, always in the same way."""
    return level * (1 + 0.1 * torch.arange(count).remainder(7).sub(3).div(3)).view(1, 1, -1).expand(1, 2, -1)


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
    errors[0, 1] *= 3
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
    watch = DriftWatch()
    watch.learn(torch.cat([steady(500), steady(500, level=10.0)]))
    watch.watch(torch.cat([steady(100), steady(100, level=10.0)]))
    watch.reorder(torch.tensor([1, 0, 1]))
    watch.watch(torch.cat([steady(156, level=10.0), steady(156), steady(156, level=10.0)]))
    assert not watch.exceeded
    watch.watch(steady(128, level=10.0).expand(3, -1, -1))
    assert watch.exceeded


def test_state_goes_round():
    watch, other = watch_of(steady(500)), DriftWatch()
    other.restore(watch.state())
    other.watch(steady(128))
    assert not other.exceeded
    other.watch(steady(128, level=3.0))
    assert other.exceeded


def test_watching_before_learning_is_refused():
    with pytest.raises(ValueError, match="learn first"):
        DriftWatch().watch(steady(3))
    assert DriftWatch().state() == {}
