"""Keys and values in 2 to 8 bits, against KIVI's formulae; the first and newest tokens stay as they are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.attention import Logits
from keyhole.methods import Recipe
from keyhole.storage import make_storage
from tests import oracles
from tests.layers import check_step
from tests.lives import Rounded
from tests.storage.histories import LENGTHS, drawing, histories, play
from tests.storage.oracle_kivi import quantised_keys, quantised_values

GROUP = 64
every_precision = pytest.mark.parametrize("bits", [8, 4, 3, 2])
FIRST = 4
every_place = pytest.mark.parametrize("place", ["device", "host", "disk"])


def filled(bits, count, *, place="device", sizes=(16, 16), dtype=torch.float32, batch=2, rotation="auto"):
    storage = make_storage(place, f"int{bits}", rotation=rotation)
    keys, values = (
        drawing(i, batch=batch, heads=2, width=size, dtype=dtype)(count) for i, size in enumerate(sizes)
    )
    # Channels of keys differ in level and size, as those of real models do.
    keys = (keys * torch.linspace(0.1, 9, sizes[0]) + torch.linspace(-5, 5, sizes[0])).to(dtype)
    storage.append(keys, values)
    return storage, keys, values


def turning(size):
    """An orthogonal matrix of blocks by Sylvester's rule, as large as a power of two divides the size."""
    turn = np.eye(size // (size & -size))
    while len(turn) < size:
        turn = np.kron(turn, np.array([[1, 1], [1, -1]]) / np.sqrt(2))
    return turn


def packed(count):
    """Tokens that are packed of so many, appended at once or in pieces: all but one to two groups."""
    return max(0, count - GROUP) // GROUP * GROUP


@every_precision
@every_place
@pytest.mark.parametrize("count", [1, 64, 127, 128, 129, 300])
@pytest.mark.parametrize("sizes", [(16, 16), (7, 12), (1, 3)], ids=str)
@pytest.mark.parametrize("rotation", ["none", "hadamard"])
def test_against_the_formulae(bits, place, count, sizes, rotation):
    storage, keys, values = filled(bits, count, place=place, sizes=sizes, rotation=rotation)
    early = packed(count)
    whole = FIRST if early else 0
    assert torch.equal(storage.keys()[:, :, :whole], keys[:, :, :whole])
    assert torch.equal(storage.values()[:, :, :whole], values[:, :, :whole])
    assert torch.equal(storage.keys(early), keys[:, :, early:])
    assert torch.equal(storage.values(early), values[:, :, early:])
    for row in range(2):
        for head in range(2):
            plain = [tensor[row, head, :early].numpy().copy() for tensor in (keys, values)]
            held = [tensor[row, head, :early].numpy() for tensor in (storage.keys(), storage.values())]
            turns = [turning(size) if rotation == "hadamard" else np.eye(size) for size in sizes]
            for tokens in plain:
                tokens[:whole] = tokens[whole : whole + 1]
            turned = [tokens @ turn.astype(np.float32) for tokens, turn in zip(plain, turns, strict=True)]
            expected = quantised_keys(turned[0], bits, GROUP), quantised_values(turned[1], bits)
            for found, exact, turn, (become, bound) in zip(held, turned, turns, expected, strict=True):
                found = found[whole:] @ turn
                # A number halfway between two codes may become either, as rotations are rounded.
                near = np.abs(found - become[whole:]) <= 1e-4 * (1 + np.abs(become[whole:]))
                assert near.sum() >= 0.999 * near.size
                assert (np.abs(found - exact[whole:]) <= bound[whole:] * 1.001 + 1e-4).all()


def test_a_channel_that_is_large_costs_the_others_nothing():
    """One scale for all channels of a key would lose the small ones: the reason for KIVI's axes."""
    keys = drawing(heads=1, width=8)(256) * torch.tensor([1000.0] + [0.01] * 7)
    storage = make_storage("device", "int8")
    storage.append(keys, keys)
    assert (storage.keys() - keys)[..., 1:].abs().max() < 0.01 * 8 / 255


@every_precision
def test_equal_numbers_are_kept_exactly(bits):
    storage = make_storage("device", f"int{bits}")
    keys = torch.full((1, 1, 200, 4), -0.3)
    storage.append(keys, keys)
    assert torch.equal(storage.keys(), keys)
    assert torch.equal(storage.values(), keys)


@every_precision
def test_pieces_equal_the_whole(bits):
    whole, keys, values = filled(bits, 777)
    pieces, start = make_storage("device", f"int{bits}"), 0
    for count in [1, 63, 64, 65, 200, *[1] * 130, 254]:
        part = slice(start, start + count)
        pieces.append(keys[:, :, part], values[:, :, part])
        start += count
    assert start == 777
    assert torch.equal(whole.keys(), pieces.keys())
    assert torch.equal(whole.values(), pieces.values())


@every_precision
@settings(max_examples=30)
@given(histories)
def test_any_history_stays_within_the_error(bits, history):
    """Cutting into a group unpacks and packs it again; numbers in [-1, 1] then err twice at most."""
    storage = make_storage("disk", f"int{bits}", 100_000, rotation="none")
    bounded = drawing(width=6)

    def draw(count):
        return bounded(count).clamp(-1, 1)

    def append(tokens):
        storage.append(tokens, tokens)

    tolerance = 2 * 2 / (2**bits - 1) / 2 * (1 + sum(event == "crop" for event, _ in history))
    for plain in play(history, append, storage.crop, storage.reorder, draw):
        assert storage.length == plain.shape[2]
        if plain.shape[2]:
            assert (storage.keys() - plain).abs().max() <= tolerance
            assert (storage.values() - plain).abs().max() <= tolerance


@every_precision
@every_place
@pytest.mark.parametrize("cache", [0, 60_000])
@settings(max_examples=20)
@given(st.sampled_from([*LENGTHS[1:], 700]), st.integers(0, 99))
def test_attention_is_exact_over_what_is_held(bits, place, cache, count, seed):
    keys, values = (drawing(seed + i, heads=2, width=size)(count) for i, size in enumerate((12, 12)))
    storage = make_storage(place, f"int{bits}", cache if place != "device" else 0)
    storage.append(keys, values)
    random = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 4, 12, generator=random)
    for _ in range(3):
        counts = torch.randint(0, count + 1, (2, 2), generator=random)
        slots = torch.rand(2, 2, count, generator=random).argsort(-1).int()
        part = storage.attend(query, slots, counts, Logits(0.3))
        for row in range(2):
            read = [slots[row, head, : counts[row, head]].tolist() for head in range(2)]
            held = (oracles.array(t[row]) for t in (query, storage.keys(), storage.values()))
            out, lse = oracles.attention(*held, read, scale=0.3)
            np.testing.assert_allclose(part.out[row], out, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(part.lse[row], lse, rtol=1e-4, atol=1e-4)


@every_precision
def test_bf16_comes_back_as_bf16(bits):
    storage, keys, _ = filled(bits, 200, dtype=torch.bfloat16)
    assert storage.keys().dtype == storage.values().dtype == torch.bfloat16
    error = (storage.keys().float() - keys.float()).abs().amax()
    assert error <= (keys.float().amax() - keys.float().amin()) / (2**bits - 1) + 0.1
    query = torch.randn(2, 4, 16).bfloat16()
    part = storage.attend(query, torch.arange(200).expand(2, -1), torch.tensor([200, 150]), Logits(0.25))
    assert part.out.dtype == torch.bfloat16


@every_precision
def test_true_bytes_are_counted(bits):
    storage, _, _ = filled(bits, 64 * 100, place="host", sizes=(128, 128))
    token = 2 * (2 * 128 * bits / 8 + 2 * 128 * 4 / 64 + 2 * 4)  # heads, codes, key ranges, value ranges
    assert storage.token_bytes == token
    held = storage.footprint
    stored = 2 * 64 * 99 * token
    assert stored <= held.host <= 1.1 * stored + 2 * 64 * 256 * token
    assert 0 < held.device <= 2 * 2 * 64 * 256 * 6 * 4


def test_memory_of_the_prompt_in_full_is_let_go():
    storage, keys, values = filled(8, 64 * 100, sizes=(128, 128))
    assert storage.footprint.device < 0.5 * (keys.nbytes + values.nbytes)


@every_precision
@every_place
@pytest.mark.parametrize("length", [1, 64, 128, 192, 250])
def test_state_goes_round(bits, place, length):
    storage, _, _ = filled(bits, 300, place=place)
    storage.crop(length)
    state = {name: tensor.clone() for name, tensor in storage.state().items()}
    other, keys, values = filled(bits, 500, place="device", batch=5)
    other.restore(state)
    assert other.length == length
    assert torch.equal(other.keys(), storage.keys())
    assert torch.equal(other.values(), storage.values())
    for held in (storage, other):
        held.append(keys[:2], values[:2])
    assert torch.equal(other.keys(), storage.keys())


@every_precision
@pytest.mark.parametrize("budget", ["budget=20", "mass=0.9"])
@pytest.mark.parametrize("padding", [None, [0, 70]])
def test_steps_of_a_layer(bits, budget, padding):
    layer = Rounded(
        f"oracle({budget}, sinks=2, window=6, place=disk, kv_dtype=int{bits})", batch=2, padding=padding
    )
    layer.append(200)
    for _ in range(70):
        layer.step()
    layer.crop(150)
    for _ in range(3):
        layer.step()
    layer.reorder([1, 0, 1])
    for _ in range(3):
        layer.append(1)
        check_step(layer, layer.attend())


def test_a_full_budget_is_dense_over_what_is_held():
    layer = Rounded("oracle(mass=1.0, floor=1000000, sinks=2, window=6, kv_dtype=int4)", batch=2)
    layer.append(500)
    layer.append(1)
    out = layer.attend()
    assert layer.observed is not None
    np.testing.assert_allclose(out, layer.dense(), rtol=1e-3, atol=1e-4)


def test_8_bits_are_nearly_dense():
    """A wrong axis or an offset by a token would be far off."""
    plain, rounded = (
        Recipe.parse(spec).layers(1)[0] for spec in ("dense", "oracle(budget=1.0, kv_dtype=int8)")
    )
    keys, values = drawing(0, width=32)(600), drawing(1, width=32)(600)
    query = torch.randn(2, 6, 1, 32)
    outs = []
    for cache in (plain, rounded):
        cache.append(keys, values)
        outs.append(cache.attend(query, Logits(32**-0.5)))
    torch.testing.assert_close(*outs, atol=0.01, rtol=0)
