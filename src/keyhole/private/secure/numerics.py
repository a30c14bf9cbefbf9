"""Functions of secret numbers in fixed point, with few products and known error.

SPU's own `exp` errs by 7% at -6 with its default of 8 squarings, and its `logistic` sends 1.8 kB a number.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
import jax.numpy as jnp
import numpy as np
from jax import Array

SQUARINGS = 4
CLIP = 14.0  # exp(-14) is a quarter of a unit of 2**-18


def _quartic() -> tuple[float, tuple[float, float, float, float]]:
    """`exp` on [-CLIP / 2**SQUARINGS, 0] as a quartic of relative error 1e-5: two products by Knuth's form.

    Returns:
        The scale s by which the argument comes multiplied, so that the quartic in z = s u begins with
        z**4, and a, b,
        c, d of `y = (z + a) z + b; (y + z + c) y + d`.
    """
    low = -CLIP / 2**SQUARINGS
    nodes = low / 2 * (1 + np.cos(np.pi * (np.arange(200) + 0.5) / 200))
    powers = np.vander(nodes, 5, increasing=True) / np.exp(nodes)[:, None]
    fitted = np.linalg.lstsq(powers, np.ones(len(nodes)), rcond=None)[0]
    scale = fitted[4] ** 0.25
    c0, c1, c2, c3, _ = fitted / scale ** np.arange(5)
    a = (c3 - 1) / 2
    both = c2 - a * a - a
    b = c1 - a * both
    rest = both - b
    return float(scale), (float(a), float(b), float(rest - b), float(c0 - b * rest))


SCALE, _KNUTH = _quartic()
UNIT = SCALE / 2**SQUARINGS  # what `exp_of` wants its argument multiplied by
CLIPPED = CLIP * UNIT


def exp_of(scaled: Array) -> Array:
    """`exp(x)` of x <= 0, given x * UNIT; exactly 0 below -CLIP."""
    a, b, c, d = _KNUTH
    y = (scaled + a) * scaled + b
    power = (y + scaled + c) * y + d
    for _ in range(SQUARINGS):
        power = power * power
    return power * (scaled > -CLIPPED)


def sigmoid(x: Array) -> Array:
    """Logistic function of any x, to about 1e-4."""
    negative = (x < 0).astype(jnp.int32).astype(jnp.float32)
    small = exp_of((x * negative * 2 - x) * UNIT)
    whole = 1 + small
    inverse = 16 / 17 - small * (8 / 17)  # of a number in [1, 2]; two steps of Newton's leave 1e-5
    for _ in range(2):
        inverse = inverse * (2 - whole * inverse)
    return inverse + negative * (1 - 2 * inverse)


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def gelu(x: Array) -> Array:
    """GPT-2's, with tanh: x times the logistic function of twice its inner polynomial."""
    inner = x * (1 + 0.044715 * (x * x))
    return x * sigmoid(inner * (2 * float(np.sqrt(2 / np.pi))))


ACTIVATIONS = {"silu": silu, "gelu_new": gelu, "gelu_pytorch_tanh": gelu}

_LIFT = 4.0  # squares of small hidden states would be a few units of 2**-18


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Of `x [..., E]`."""
    return _over_root(x * _LIFT, eps) * weight


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Of `x [..., E]`."""
    centred = (x - jnp.mean(x, axis=-1, keepdims=True)) * _LIFT
    return _over_root(centred, eps) * weight + bias


def _over_root(lifted: Array, eps: float) -> Array:
    # One by one, so that a sum of large squares does not leave the ring.
    squares = jnp.mean(lifted * lifted, axis=-1, keepdims=True) + eps * _LIFT**2
    return lifted * (1.0 / jnp.sqrt(squares))
