"""A call that was broken off leaves a layer as it was, or one that refuses to go on."""

import pytest
import torch

from keyhole.methods import METHODS, Recipe
from tests.layers import Layer
from tests.small import BESIDE_OTHERS, EVICTING, SELECTIVE, small

PAIRED = {"delta"}  # a layer follows another

ALONE = [name for name in METHODS if name not in BESIDE_OTHERS]


def filled(method):
    layer = Layer(Recipe((method,)))
    layer.append(60)
    layer.attend(60)
    layer.append(1)
    layer.attend()
    return layer


def broken(*_args, **_kwargs):
    raise KeyboardInterrupt


def refuses(layer):
    with pytest.raises(ValueError, match="an earlier call was interrupted"):
        layer.append(1)
    with pytest.raises(ValueError, match="crop this one to 0"):
        layer.attend()
    with pytest.raises(ValueError, match="interrupted"):
        layer.cache.state()
    with pytest.raises(ValueError, match="interrupted"):
        layer.cache.crop(5)
    layer.crop(0)
    layer.append(50)
    layer.attend(50)
    layer.append(1)
    assert layer.attend().isfinite().all()


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("what", ["append", "crop", "reorder"])
def test_a_storage_that_was_interrupted(name, what, monkeypatch):
    layer = filled(small(name))
    calls = {
        "append": lambda: layer.append(1),
        "crop": lambda: layer.cache.crop(layer.length - 1),
        "reorder": lambda: layer.cache.reorder(torch.tensor([0])),
    }
    with monkeypatch.context() as patch:
        for name in (what, "append_finite") if what == "append" else (what,):
            patch.setattr(layer.cache.storage, name, broken)
        with pytest.raises(KeyboardInterrupt):
            calls[what]()
    refuses(layer)


@pytest.mark.parametrize("name", EVICTING)
@pytest.mark.parametrize("where", ["retention", "kept", "scorer", "storage"])
def test_dropping_that_was_interrupted(name, where, monkeypatch):
    layer = filled(small(name, 20))
    layer.append(30)
    parts = {
        "retention": (layer.cache.retention, "choose"),
        "kept": (layer.cache.kept, "keep"),
        "scorer": (layer.cache.retention.scorer, "see"),
        "storage": (layer.cache.storage, "keep"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*parts[where], broken)
        with pytest.raises(KeyboardInterrupt):
            turn(layer)
    refuses(layer)


def turn(layer):
    """The end of a prompt, and a token after it: those that wait for the whole prompt drop then."""
    layer.attend(30)
    layer.append(1)


@pytest.mark.parametrize("name", [name for name in SELECTIVE if name not in PAIRED])
def test_half_an_index_is_none(name, monkeypatch):
    layer = filled(small(name, 8))
    layer.append(100)
    layer.append(1)
    with monkeypatch.context() as patch:
        patch.setattr(layer.cache.selector, "append", broken)
        patch.setattr(layer.cache.selector, "build", broken)
        with pytest.raises(KeyboardInterrupt):
            layer.attend()
    assert layer.cache.indexed == 0
    out = layer.attend()
    if layer.observed is not None:
        assert layer.cache.indexed > 0
    assert out.isfinite().all()


@pytest.mark.parametrize("name", ALONE)
def test_what_is_refused_can_be_taken_back(name):
    """Tokens whose mask is refused were appended; a crop forgets them, and nothing else."""
    layer, other = (
        filled(small(name, 20 if name in EVICTING else None)),
        filled(small(name, 20 if name in EVICTING else None)),
    )
    length = layer.length
    layer.append(2)
    with pytest.raises(ValueError, match="does not match"):
        layer.cache.attend(layer.draw(1, 4, 2, 16), layer.logits, mask=torch.ones(1, 4, 2, 9).bool())
    layer.crop(length)
    for each in (layer, other):
        each.random.manual_seed(7)
        each.append(9)
    assert torch.equal(layer.attend(9), other.attend(9))
    for each in (layer, other):
        each.append(1)
    assert torch.equal(layer.attend(), other.attend())
