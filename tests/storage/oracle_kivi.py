"""KIVI's quantisation (arXiv 2402.02750, equations 1 and 2) in plain loops: what numbers become.

Keys: each channel of a group of tokens has a range of its own. Values: each token has. In float32, as the
papers' formulae are computed, since a rounding may fall on either side of a half.
"""

import numpy as np


def quantised(numbers, bits):
    """A vector -> what it becomes when `bits` bits stand for each of its numbers."""
    low, high = numbers.min(), numbers.max()
    scale = np.float32((high - low) / np.float32(2**bits - 1))
    if scale == 0:
        return numbers.copy(), scale
    codes = np.array([np.round((number - low) / scale) for number in numbers], np.float32)
    assert codes.min() == 0
    assert codes.max() == 2**bits - 1
    return low + scale * codes, scale


def quantised_keys(keys, bits, group):
    """keys [T, D], T in whole groups -> what they become, and the largest error allowed, both [T, D]."""
    become, bound = np.empty_like(keys), np.empty_like(keys)
    for start in range(0, len(keys), group):
        for channel in range(keys.shape[1]):
            part = slice(start, start + group), channel
            become[part], scale = quantised(keys[part], bits)
            bound[part] = scale / 2
    return become, bound


def quantised_values(values, bits):
    """values [T, D] -> what they become, and the largest error allowed, both [T, D]."""
    become, bound = np.empty_like(values), np.empty_like(values)
    for token in range(len(values)):
        become[token], scale = quantised(values[token], bits)
        bound[token] = scale / 2
    return become, bound
