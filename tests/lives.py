"""Long lives of one layer cache: steps, prompts, crops, beams and restarts, each step checked."""

from keyhole.methods import Recipe
from tests.layers import Layer, check_step


class Rounded(Layer):
    """A layer whose plain keys and values are what its storage makes of them."""

    def attend(self, queries=1):
        out = super().attend(queries)
        self.keys, self.values = self.cache.storage.keys(), self.cache.storage.values()
        return out


def live(spec, kind=Layer, *, tokens=40, **shape):
    """A life whose crops fall within pages, groups and windows; returns the layer at its end."""
    layer = kind(spec, **{"batch": 2, "padding": [0, 9]} | shape)
    layer.append(tokens)
    for turn in range(4):
        for _ in range(9):
            step(layer)
        layer.crop(layer.length - 7 * turn)
        if turn == 1:
            restart(layer, spec)
        if turn != 2:
            layer.append(11)
        if turn == 3:
            layer.attend(11)
        layer.reorder([1, 0] if turn != 2 else [1, 1, 0])
    step(layer)
    assert layer.observed is not None
    return layer


def live_briefly(layer):
    """Steps, a crop, more steps, a prompt, beams, and steps by those."""
    layer.append(280)
    for _ in range(12):
        layer.step()
    layer.crop(200)
    for _ in range(3):
        layer.step()
    layer.append(100)
    layer.attend(100)
    layer.reorder([1, 0, 1])
    for _ in range(10):
        layer.step()


def step(layer):
    """One decode step, checked against what its storage holds when it is over."""
    layer.append(1)
    check_step(layer, layer.attend())


def restart(layer, spec):
    """Let a layer go on in fresh caches, from what their states say."""
    fresh = Recipe.parse(spec).layers(len(layer.before) + 1)
    for old, new in zip([*layer.before, layer.cache], fresh, strict=True):
        new.restore({name: tensor.clone() for name, tensor in old.state().items()}, old.indexed)
    *layer.before, layer.cache = fresh
    layer.cache.observe(layer._observe)
