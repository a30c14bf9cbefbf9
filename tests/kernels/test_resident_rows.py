"""A resident buffer against plain lists: which slots lie where, which go, and what is copied."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole import kernels

SLOTS, RING = 40, 4


@pytest.fixture(params=["reference", "triton"])
def impl(request):
    if request.param == "triton":
        pytest.importorskip("triton")
    return request.param


class Model:
    """One row's resident buffer in plain lists."""

    def __init__(self, places):
        self.slots, self.used = [-1] * places, [0] * places
        self.clock = self.hits = self.misses = 0

    def look_up(self, asked, first, last):
        self.clock += 1
        held = [slot for slot in asked if 0 <= slot < last]
        older = [slot for slot in held if slot < first]
        for slot in set(older) & set(self.slots):
            self.used[self.slots.index(slot)] = self.clock
        missed = [slot for slot in older if slot not in self.slots]
        free = [place for place in range(len(self.slots)) if self.used[place] < self.clock]
        taken = sorted(sorted(free, key=lambda place: (self.used[place], place))[: len(missed)])
        for slot, place in zip(missed, taken, strict=True):
            self.slots[place], self.used[place] = slot, self.clock
        self.hits += len(older) - len(missed)
        self.misses += len(missed)
        places = [self.slots.index(s) if s < first else len(self.slots) + s % RING for s in held]
        return dict(zip(held, places, strict=True)), missed, taken


def directory(places, rows=2, first=SLOTS - RING, last=SLOTS, slots=SLOTS):
    state = kernels.resident_directory(rows, slots, places, RING, torch.device("cpu"))
    state.held[:, 0], state.held[:, 1] = first, last
    return state


def lookups(seed, places, steps, rows=2, width=7):
    """Slots that differ, some out of range, and how many of them are meant."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        drawn = [torch.randperm(SLOTS + 6, generator=random)[: min(width, places)] - 3 for _ in range(rows)]
        yield torch.stack(drawn).int(), torch.randint(min(width, places) + 1, (rows,), generator=random)


def check_against(models, state, slots, counts, impl):
    found = kernels.resident_lookup(state, slots, counts, impl=impl)
    for row, model in enumerate(models):
        asked = slots[row, : counts[row]].tolist()
        places, missed, taken = model.look_up(asked, *state.held[row].tolist())
        number = int(found.misses[row])
        assert found.missed[row, :number].tolist() == missed
        assert found.taken[row, :number].tolist() == taken
        expected = [places.get(slot, 0) for slot in asked] + [0] * (slots.shape[1] - len(asked))
        assert found.places[row].tolist() == expected
        assert state.owner[row].tolist() == model.slots
        assert state.used[row].tolist() == model.used
        assert state.place[row].tolist() == [
            model.slots.index(slot) if slot in model.slots else -1 for slot in range(SLOTS)
        ]
        assert int(state.clock[row]) == model.clock
    assert state.counted.tolist() == [sum(m.hits for m in models), sum(m.misses for m in models)]


@settings(max_examples=30)
@given(st.integers(7, 30), st.integers(0, 999))
def test_the_policy_in_plain_lists(places, seed):
    state, models = directory(places), [Model(places) for _ in range(2)]
    for slots, counts in lookups(seed, places, 12):
        check_against(models, state, slots, counts, "reference")


@pytest.mark.parametrize("places", [7, 9, 33])
def test_the_same_by_kernels(places):
    pytest.importorskip("triton")
    state, models = directory(places), [Model(places) for _ in range(2)]
    for slots, counts in lookups(places, places, 9):
        check_against(models, state, slots.long() if places == 9 else slots, counts, "triton")


@pytest.mark.parametrize("tile", [2, 8])
def test_in_several_tiles(tile, monkeypatch):
    """Sizes beyond a tile, at a tile's end and one past it."""
    pytest.importorskip("triton")
    monkeypatch.setattr("keyhole.kernels.resident_rows.triton.lookup._TILE", tile)
    for places in (8, 17):
        state, models = directory(places), [Model(places) for _ in range(2)]
        for slots, counts in lookups(places, places, 4):
            check_against(models, state, slots, counts, "triton")


def test_the_least_recently_used_goes_and_of_equals_the_lower(impl):
    state, one = directory(4, rows=1), torch.tensor([1])
    for slot in (3, 5, 7, 9, 5):
        kernels.resident_lookup(state, torch.tensor([[slot]]), one, impl=impl)
    assert kernels.resident_lookup(state, torch.tensor([[1]]), one, impl=impl).taken.tolist() == [[0]]
    state = directory(4, rows=1)
    kernels.resident_lookup(state, torch.tensor([[3, 5, 7, 9]]), torch.tensor([4]), impl=impl)
    found = kernels.resident_lookup(state, torch.tensor([[1, 5, 2]]), torch.tensor([3]), impl=impl)
    assert found.places.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("asked", [[5, 5, 5, 6], [-1, 99, 2**31 - 1, 0]])
def test_what_should_not_be_asked_for_breaks_nothing(impl, asked):
    """A slot twice, and slots that are none: what is recorded still says which slot lies where."""
    state = directory(5, rows=1)
    for again in range(8):
        slots = torch.tensor([asked, [again, again + 1, again + 2, again + 3]])
        for row in slots:
            kernels.resident_lookup(
                state, row.view(1, 4).int(), torch.tensor([9 if again == 3 else 4]), impl=impl
            )
            for slot, place in enumerate(state.place[0].tolist()):
                assert place == -1 or int(state.owner[0, place]) == slot


def test_nothing_asked_for(impl):
    state = directory(3)
    found = kernels.resident_lookup(state, torch.zeros(2, 3).int(), torch.tensor([0, -2]), impl=impl)
    assert found.misses.tolist() == [0, 0]
    assert found.places.tolist() == [[0] * 3] * 2
    assert (state.owner == -1).all()
    found = kernels.resident_lookup(state, torch.zeros(2, 0).int(), torch.zeros(2).int(), impl=impl)
    assert found.places.shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("width", [1, 5, 24, 96])
def test_what_is_missing_is_fetched_and_nothing_else_touched(impl, dtype, width, monkeypatch):
    if impl == "triton":
        monkeypatch.setattr(
            "keyhole.kernels.resident_rows.triton.copy._TILE", 16
        )  # several tiles of a row, several rows
    state = directory(9, first=SLOTS)
    held = (torch.randn(2, SLOTS + 3, width) * 30).to(dtype)[:, :SLOTS]
    pool = torch.zeros(2, 9 + RING, width, dtype=dtype)
    mirror = pool.clone()
    for slots, counts in lookups(width, 9, 4):
        found = kernels.resident_lookup(state, slots, counts, impl=impl)
        kernels.resident_fill(pool, held, found, impl=impl)
        for row in range(2):
            for slot, place in zip(found.missed[row], found.taken[row], strict=True):
                if (slot, place) in zip(
                    found.missed[row, : found.misses[row]], found.taken[row], strict=False
                ):
                    mirror[row, place] = held[row, slot]
        assert torch.equal(pool, mirror)


@settings(max_examples=20)
@given(
    st.lists(st.integers(0, RING), max_size=8), st.sampled_from(["reference", "triton"]), st.integers(1, 9)
)
def test_new_rows_go_to_the_ring_and_to_the_others(counts, impl, width):
    if impl == "triton":
        pytest.importorskip("triton")
    state = directory(3, first=0, last=0, slots=10)
    pool, held = torch.zeros(2, 3 + RING, width), torch.full((2, 12, width), torch.nan)[:, :10]
    plain = torch.randn(2, sum(counts), width)
    start = 0
    for count in counts:
        kernels.resident_append(state, pool, held, plain[:, start : start + count], impl=impl)
        start += count
        assert state.held.tolist() == [[max(0, start - RING), start]] * 2
        assert torch.equal(held[:, : min(start, 10)], plain[:, : min(start, 10)])
        assert bool(held[:, start:].isnan().all())
        for slot in range(max(0, start - RING), start):
            assert torch.equal(pool[:, 3 + slot % RING], plain[:, slot])
    assert not pool[:, :3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "extent", [(0, 40, 0, 13), (3, 20, 2, 12), (7, 8, 5, 6), (9, 9, 0, 4), (1, 38, 0, 8)]
)
def test_a_part_of_the_rows(impl, dtype, extent):
    held = torch.randn(2, SLOTS + 3, 13).to(dtype)[:, :SLOTS]
    first, last, start, stop = extent
    around = torch.zeros(2, last - first + 5, stop - start, dtype=dtype)
    found = around[:, 3:-2]
    kernels.read_rows(held, kernels.Extent(*extent), found, impl=impl)
    assert not around[:, :3].any()
    assert not around[:, -2:].any()
    assert torch.equal(found, held[:, first:last, start:stop])


def test_what_does_not_fit_is_refused():
    state, pool = directory(3), torch.zeros(2, 7, 5)
    with pytest.raises(ValueError, match="4 slots are chosen at once and the resident buffer has 3 places"):
        kernels.resident_lookup(state, torch.zeros(2, 4).int(), torch.zeros(2).int())
    with pytest.raises(ValueError, match="do not fit 2 rows"):
        kernels.resident_lookup(state, torch.zeros(3, 2).int(), torch.zeros(3).int())
    with pytest.raises(ValueError, match="do not fit a pool"):
        kernels.resident_append(state, pool, pool.bfloat16(), pool[:, :1])
    with pytest.raises(ValueError, match="more than the ring's 4"):
        kernels.resident_append(state, pool, torch.zeros(2, 9, 5), torch.zeros(2, 5, 5))
    with pytest.raises(ValueError, match="does not lie in rows"):
        kernels.read_rows(pool, kernels.Extent(0, 8, 0, 5), pool)
