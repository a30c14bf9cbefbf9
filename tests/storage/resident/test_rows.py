"""Rows behind a resident buffer: what plain tensors hold, and no step waits for the device."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import keyhole
from keyhole.attention import Logits
from keyhole.methods import placing
from keyhole.storage import Footprint, PinnedStorage, ResidentRows, make_storage
from keyhole.storage.chosen import Chosen
from tests.layers import Layer
from tests.lives import live_briefly
from tests.storage.histories import drawing, histories, play
from tests.storage.resident.test_fetched import check, some
from tests.tiny import prompt, tiny_model
from tests.waiting import without_waiting

PLACES = 40  # as many as `some` chooses at once
ROW_BYTES = 2 * 3 * 5 * 4  # of a place of all heads of rows that `drawing` makes


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A ring that fills up in a test, and new rows in numbers that pass through the kernel or not."""
    monkeypatch.setattr("keyhole.storage.resident.rows.RING", 8)
    monkeypatch.setattr("keyhole.storage.resident.rows._FEW", 5)


@settings(max_examples=40)
@given(histories, st.integers(0, 99), st.sampled_from([0, PLACES * ROW_BYTES]))
def test_any_history_equals_plain_tensors(history, seed, nbytes):
    rows = ResidentRows(nbytes, window=3)
    for plain in play(history, rows.append, rows.crop, rows.reorder, drawing(seed)):
        assert rows.length == plain.shape[2]
        for start in (0, rows.length // 2, max(rows.length - 3, 0), rows.length):
            assert torch.equal(rows.view(start), plain[:, :, start:])
            assert torch.equal(rows.view(start, slice(1, 4)), plain[:, :, start:, 1:4])
        for again in (0, 0, 1) if rows.length else ():
            check(rows, plain, some(rows.length, seed + again))


def of_one_head(chosen):
    return Chosen(chosen.slots[:, :1, :25], chosen.counts[:, :1].clamp(max=25))


def test_by_kernels_as_by_the_reference():
    pytest.importorskip("triton")
    both, draw = [ResidentRows(), ResidentRows(impl="triton")], drawing(heads=1)
    for count in (30, 3, 1):
        new = draw(count)
        for rows in both:
            rows.append(new)
        assert torch.equal(*(rows.view() for rows in both))
        for again in range(2):
            chosen = of_one_head(some(both[0].length, again))
            assert torch.equal(*(rows.bring(chosen)[1] for rows in both))
            assert torch.equal(*(rows.fetch(chosen) for rows in both))
    for rows in both:
        rows.crop(20)
        rows.reorder(torch.tensor([1, 1]))
    assert torch.equal(*(rows.fetch(of_one_head(some(20, 3))) for rows in both))
    assert both[0].lookups == both[1].lookups


def test_a_decode_step_waits_for_nothing(monkeypatch):
    """Appending, finding, fetching and reading the newest key, after the first step made room."""
    pytest.importorskip("triton")
    rows, new = ResidentRows(window=4, impl="triton"), drawing(1)(1)
    rows.append(drawing()(60))
    chosen = some(61, 0)
    for _ in range(2):
        rows.append(new)
        rows.bring(chosen)
        rows.view(rows.length - 1)
    with without_waiting(monkeypatch):
        rows.append(new)
        rows.bring(chosen)
        rows.view(rows.length - 1)
        rows.view(rows.length - 4, slice(0, 3))


def test_what_is_read_again_is_at_hand():
    rows, plain = ResidentRows(), drawing()(300)
    rows.append(plain)
    chosen = Chosen(torch.tensor([5, 200, 6, 299]).int().expand(2, 3, 4), torch.full((2, 3), 4))
    for lookups in ((0, 18), (18, 18), (36, 18)):
        check(rows, plain, chosen)
        assert rows.lookups[:2] == lookups, "the newest are neither hits nor misses"
    rows.crop(150)
    rows.append(plain[:, :, 150:])
    check(rows, plain, chosen)
    assert rows.lookups[:2] == (48, 24), "what was forgotten is fetched again"


def test_only_what_is_missing_is_read_from_the_host():
    rows, plain = ResidentRows(), drawing()(300)
    rows.append(plain)
    chosen = Chosen(torch.tensor([5, 200, 299]).int().expand(2, 3, 3), torch.full((2, 3), 3))
    rows.fetch(chosen)
    rows.host.view().fill_(torch.nan)
    check(rows, plain, chosen)
    assert torch.equal(rows.view(293), plain[:, :, 293:])


def test_the_last_piece_of_a_prompt_is_not_read_back():
    """Nor waited for: what is copied to the host may still be on its way."""
    rows, plain = ResidentRows(), drawing()(400)
    for piece in (plain[:, :, :300], plain[:, :, 300:]):
        rows.append(piece)
        rows.host.view()[:, :, -piece.shape[2] :] = torch.nan
        length = rows.length
        assert torch.equal(rows.view(0, slice(0, 2)), plain[:, :, :length, :2])
        assert torch.equal(rows.view(length // 2, slice(2, None)), plain[:, :, length // 2 : length, 2:])
        assert bool(rows.view()[:, :, -piece.shape[2] :].isnan().all()), "it is let go when it was read"
        rows.host.view()[:, :, -piece.shape[2] :] = piece


def test_reordering_rows_keeps_what_was_fetched():
    rows, plain = ResidentRows(), drawing()(300)
    rows.append(plain)
    chosen = Chosen(torch.tensor([5, 200]).int().expand(2, 3, 2), torch.full((2, 3), 2))
    rows.fetch(chosen)
    rows.reorder(torch.tensor([1, 1]))
    check(rows, plain[[1, 1]], chosen)
    assert rows.lookups[:2] == (12, 12)
    rows.reorder(torch.tensor([1, 0, 1]))
    three = Chosen(*(tensor[[0, 0, 0]] for tensor in chosen[:2]))
    check(rows, plain[[1, 1, 1]], three)
    assert rows.lookups[:2] == (12, 30)


def test_bytes_are_kept_to_and_told():
    rows = ResidentRows(nbytes=PLACES * ROW_BYTES + 7)
    rows.append(drawing()(300))
    piece = rows.footprint.device
    rows.append(drawing()(1))
    before = rows.footprint
    assert piece - before.device < 300 * ROW_BYTES < piece, "a prompt's piece counts until it is let go"
    assert before.host >= 300 * ROW_BYTES
    rows.fetch(some(300, 0))
    taken = rows.footprint.device - before.device
    assert PLACES * ROW_BYTES <= taken <= PLACES * (ROW_BYTES + 2 * 6 * 4), (
        "with an owner and a time for each"
    )
    rows.crop(0)
    assert rows.footprint.device < 200
    assert ResidentRows().footprint == Footprint()


def test_too_few_bytes_are_refused_with_the_number_that_is_enough():
    rows = ResidentRows(nbytes=39 * ROW_BYTES)
    rows.append(drawing()(300))
    with pytest.raises(ValueError, match=f"39 places .* reads 40 tokens .* at least {40 * ROW_BYTES} bytes"):
        rows.fetch(some(300, 0))
    with pytest.raises(ValueError, match="append first"):
        ResidentRows().view()


def test_a_read_wider_than_any_before_gets_room():
    rows, plain = ResidentRows(), drawing()(300)
    rows.append(plain)
    for width in (1, 3, 20, 100):
        slots = torch.arange(0, 2 * width, 2).int().expand(2, 3, width)
        check(rows, plain, Chosen(slots, torch.full((2, 3), width)))


def test_the_ring_holds_two_windows():
    assert ResidentRows(window=4)._ring == 8
    assert ResidentRows(window=5)._ring == 16
    assert ResidentRows(window=64)._ring == 128


def filled(count=300, dtype=torch.float32):
    storage = PinnedStorage(ResidentRows(window=3))
    keys, values = (drawing(i, batch=2, heads=2, width=w, dtype=dtype)(count) for i, w in enumerate((8, 6)))
    storage.append(keys, values)
    return storage, keys, values


def test_another_batch_after_all_was_forgotten():
    storage, _, _ = filled()
    storage.crop(0)
    rows = drawing(batch=3, width=4)(20)
    storage.append(rows, rows)
    assert torch.equal(storage.values(), rows)
    part = storage.attend(torch.ones(3, 3, 4), torch.zeros(3, 1).int(), torch.ones(3).int(), Logits(1.0))
    torch.testing.assert_close(part.out, rows[:, :, 0])


@pytest.fixture
def hot(monkeypatch):
    """Methods place what they are to place on the host behind a resident buffer, as on a GPU."""
    made = []

    def make(where, precision, cache, eviction, _device, *others):
        made.append(make_storage(where, precision, cache, eviction, torch.device("cuda"), *others))
        return made[-1]

    monkeypatch.setattr(placing, "make_storage", make)
    return made


@pytest.mark.parametrize("method", ["oracle(", "pqcache(subspaces=4, bits=3, ", "quest(page=4, "])
@pytest.mark.parametrize("cache", [0, 100_000])
def test_steps_of_a_layer(hot, method, cache):
    spec = f"{method}budget=20, sinks=2, window=6, place=host, block_cache={cache})"
    layer = Layer(spec, batch=2, padding=[0, 70], value_size=24)
    live_briefly(layer)
    assert layer.cache.usage.hits > 0
    assert isinstance(hot[-1], PinnedStorage)


def test_a_layer_in_and_out_of_inference_mode(hot):
    with torch.inference_mode():
        layer = Layer("oracle(budget=20, sinks=2, window=6, place=host)")
        layer.append(300)
        for _ in range(3):
            layer.step()
    for _ in range(3):
        layer.step()
    layer.crop(250)
    layer.step()
    assert isinstance(hot[-1], PinnedStorage)


def test_tokens_of_a_model_with_a_tiny_resident_buffer(hot):
    """The fewest places a step can do with: nearly every read is a miss, and every token the same."""
    model, tokens = tiny_model("llama"), prompt(150, rows=2)
    found = []
    for place in ("device", "host, block_cache=30000"):
        method = f"pqcache(budget=24, sinks=4, window=16, place={place})"
        with keyhole.attach(model, method) as attached:
            found.append(model.generate(tokens, max_new_tokens=24, do_sample=False, prefill_chunk_size=64))
    assert torch.equal(*found)
    assert all(isinstance(storage, PinnedStorage) for storage in hot)
    assert attached.footprint.host > 0
    assert attached.usage.misses > attached.usage.hits / 4 > 0
