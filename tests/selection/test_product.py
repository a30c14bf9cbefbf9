import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole import kernels
from keyhole.core.budget import Budget
from keyhole.selection import ProductSelector
from keyhole.selection.exact import ExactSelector
from tests import oracles
from tests.steps import competing, make_step


def make(subspaces=4, bits=4, rotate=False, iterations=4, sample=8192):
    return ProductSelector(
        subspaces=subspaces, bits=bits, rotate=rotate, iterations=iterations, sample=sample
    )


def draw(count, batch=1, heads=2, size=16, seed=0, power=0.7):
    """Keys whose variance falls as a power law along hidden axes, as those of models do."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, size + 1).float().pow(-power)
    axes = torch.linalg.qr(torch.randn(heads, size, size, generator=generator)).Q
    return (torch.randn(batch, heads, count, size, generator=generator) * spread) @ axes


def build(selector, keys, first):
    selector.build(keys, competing(first, keys.shape[2], keys.shape[2]))


def built(keys, first=0, **options):
    selector = make(**options)
    build(selector, keys, [first] * keys.shape[0])
    return selector


def codes_of(selector):
    """The codes held, `[B, Hkv, length, M]`."""
    held = selector.state()["codes"]
    codes = kernels.read_codes(
        held.flatten(0, 1), 0, selector.length, subspaces=selector.subspaces, bits=selector.bits
    )
    return codes.unflatten(0, held.shape[:2])


def quantised_keys(selector, keys):
    """Keys as they are quantised: along the learnt axes, where there are any."""
    rotation = selector.state().get("rotation")
    return keys if rotation is None else keys @ rotation


def check_codes(selector, keys):
    """Every code is that of the nearest centroid, up to float32 rounding of the distances."""
    assert selector.length == keys.shape[2]
    books, codes = selector.state()["codebooks"], codes_of(selector)
    for row in range(keys.shape[0]):
        points = quantised_keys(selector, keys)[row]
        assert oracles.pq_code_error(*map(oracles.array, (codes[row], points, books[row]))) < 1e-5


def step_of(query, keys, first, last, budget, anchor=None, softcap=None):
    batch, heads = query.shape[:2]
    anchor = torch.full((batch, heads), -torch.inf) if anchor is None else anchor
    return make_step(query, keys, [first] * batch, last, anchor, budget, softcap=softcap)


def shares_of(selector, step, row):
    """The oracle's shares of the candidates, and the factor that rounding the tables may change them by.

    Tables are rounded to integers up to 255 (4 bits) or 65535 // M; a logit adds M of them.
    """
    kv_heads = step.storage.keys().shape[1]
    query = quantised_keys(selector, step.query.unflatten(1, (kv_heads, -1)))[row].flatten(0, 1)
    books = oracles.array(selector.state()["codebooks"][row])
    codes = oracles.array(codes_of(selector)[row])[:, int(step.regions.first[row]) : step.regions.last]
    query = oracles.array(query)
    logits = oracles.pq_logits(query, books, codes, scale=step.logits.scale, softcap=step.logits.softcap)
    tables = oracles.pq_tables(query, books) * step.logits.scale
    span = (tables.max(-1) - tables.min(-1)).max()
    top = 255 if selector.bits == 4 else 65535 // selector.subspaces
    slack = float(np.exp(2 * (span / top / 2 * selector.subspaces + 1e-4)))
    anchors = (
        oracles.array(step.anchor_lse[row]).reshape(-1, 1) - logit_variances(selector, step, row, query) / 2
    )
    shares, fixed = oracles.group_shares(logits, anchors, step.storage.keys().shape[1])
    return shares, fixed, slack


def logit_variances(selector, step, row, query):
    """`[H, 1]`: what the residuals' second moment makes of each query head's logits."""
    moments = oracles.array(selector.state()["residuals"][row])
    group = query.shape[0] // moments.shape[0]
    return np.array([[step.logits.scale**2 * q @ moments[h // group] @ q] for h, q in enumerate(query)])


def check_greatest(selector, step, selection, counts=None):
    """The picked slots are valid, ascending and have the greatest shares, up to the rounding of tables."""
    for row in range(step.query.shape[0]):
        shares, fixed, slack = shares_of(selector, step, row)
        start = int(step.regions.first[row])
        for head in range(step.storage.keys().shape[1]):
            count = int(selection.counts[row, head])
            slots = selection.slots[row, head, :count].tolist()
            assert slots == sorted(set(slots))
            assert all(start <= slot < step.regions.last for slot in slots)
            picked = [shares[head, slot - start] for slot in slots]
            left = [share for slot, share in enumerate(shares[head], start) if slot not in slots]
            if picked and left:
                assert min(picked) * slack >= max(left)
            mass = fixed[head] + sum(picked)
            assert mass / slack <= float(selection.mass[row, head]) <= mass * slack
            if counts is not None:
                assert count == counts


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize(
    ("size", "subspaces", "bits"), [(16, 4, 4), (24, 3, 4), (8, 8, 5), (64, 2, 8), (40, 1, 1)]
)
def test_codes_are_the_nearest_centroids(size, subspaces, bits, rotate):
    keys = draw(700, batch=2, size=size)
    selector = built(keys[:, :, :400], first=9, subspaces=subspaces, bits=bits, rotate=rotate)
    check_codes(selector, keys[:, :, :400])
    for start, stop in ((400, 401), (401, 464), (464, 465), (465, 700)):
        selector.append(keys[:, :, start:stop])
    check_codes(selector, keys)


def test_pieces_equal_the_whole():
    keys = draw(900)
    pieces, whole = built(keys[:, :, :300]), built(keys[:, :, :300])
    whole.append(keys[:, :, 300:])
    for part in keys[:, :, 300:].split([1, 31, 63, 100, 1, 404], dim=2):
        pieces.append(part)
    assert torch.equal(codes_of(pieces), codes_of(whole))
    assert pieces.stale == whole.stale


def test_long_prompts_are_encoded_in_chunks(monkeypatch):
    keys = draw(500)
    whole = built(keys)
    monkeypatch.setattr("keyhole.selection.product._CHUNK", 63)
    assert torch.equal(codes_of(built(keys)), codes_of(whole))


def test_building_twice_gives_the_same():
    keys = draw(300)
    first, second = built(keys).state(), built(keys).state()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_building_anew_forgets_the_last_prompt():
    """Two prompts of different length, and head size, in a row."""
    selector = built(draw(700, size=32, seed=1), rotate=True)
    keys = draw(300)
    build(selector, keys, [0])
    fresh = built(keys, rotate=True)
    assert all(torch.equal(selector.state()[name], fresh.state()[name]) for name in fresh.state())


@pytest.mark.parametrize("rotate", [False, True])
def test_padding_and_sinks_are_not_clustered(rotate):
    keys = draw(400)
    padded = torch.cat([torch.full((1, 2, 100, 16), 1e4), keys], dim=2)
    plain, with_padding = built(keys, rotate=rotate), built(padded, first=100, rotate=rotate)
    assert torch.equal(with_padding.state()["codebooks"], plain.state()["codebooks"])
    assert torch.equal(codes_of(with_padding)[:, :, 100:], codes_of(plain))


def test_drift_is_measured_without_padding():
    keys = draw(2000)
    padded = torch.cat([torch.full((1, 2, 100, 16), 1e4), keys], dim=2)
    torch.testing.assert_close(
        built(padded, first=100).state()["worst_error"], built(keys).state()["worst_error"], rtol=0.2, atol=0
    )


@pytest.mark.parametrize("real", [1, 5, 20])
def test_a_row_with_fewer_tokens_than_centroids(real):
    keys = draw(300, batch=2)
    selector = make()
    build(selector, keys, [0, 300 - real])
    check_codes(selector, keys)
    tail = keys[1:, :, -real:]
    errors = quantised_errors(selector, 1, tail[0])
    assert errors.max() < 1e-6 or real > 16


def quantised_errors(selector, row, keys):
    distances = oracles.pq_distances(oracles.array(keys), oracles.array(selector.state()["codebooks"][row]))
    return distances.min(-1).sum(-1)


@pytest.mark.parametrize("size", [1, 2, 8, 31, 32, 40, 56, 64, 80, 96, 100, 128, 192, 256])
def test_left_out_sub_spaces_fit_any_head_size(size):
    selector = built(draw(40, size=size), subspaces=None)
    assert size % selector.subspaces == 0
    assert selector.subspaces >= min(16, size // 2)


def test_an_index_pays_with_more_tokens_than_centroids():
    assert [make(bits=bits).minimum for bits in (1, 4, 8)] == [3, 17, 257]


def test_only_short_rows():
    """One prompt, padded to a length that would suffice, is shorter than the number of centroids."""
    selector = built(draw(300), first=290)
    assert selector.length == 300


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize(("subspaces", "bits", "groups"), [(4, 4, 4), (2, 6, 1), (4, 8, 3)])
def test_selects_the_greatest_estimated_shares(subspaces, bits, groups, rotate, softcap):
    keys = draw(330, batch=2)
    selector = built(keys, first=11, subspaces=subspaces, bits=bits, rotate=rotate)
    query = 4 * torch.randn(2, 2 * groups, 16, generator=torch.Generator().manual_seed(5))
    anchor = torch.linspace(-2, 6, 4 * groups).view(2, -1)
    step = step_of(query, keys, 11, 290, Budget(tokens=40), anchor, softcap)
    check_greatest(selector, step, selector.select(step), counts=40)


@pytest.mark.parametrize("kind", [make, ExactSelector])
def test_a_selection_is_no_wider_than_it_need_be(kind):
    """Else all keys would be gathered for a mass that few tokens hold."""
    keys, selector = draw(330), kind()
    build(selector, keys, [0])
    step = step_of(torch.randn(1, 4, 16), keys, 0, 300, Budget(mass=0.3), torch.zeros(1, 4))
    selection = selector.select(step)
    assert selection.slots.shape == (1, 2, int(selection.counts.max()))


def test_a_floor_above_the_cap_gives_way():
    keys = draw(330)
    step = step_of(torch.randn(1, 4, 16), keys, 0, 300, Budget(mass=0.99, floor=200, cap=0.01))
    assert built(keys).select(step).counts.tolist() == [[3, 3]]


def test_rows_that_have_no_candidates():
    """The second row begins within the window; nothing of it competes."""
    keys = draw(330, batch=2)
    selector = make()
    build(selector, keys, [0, 320])
    step = step_of(torch.randn(2, 4, 16), keys, 0, 300, Budget(tokens=10))
    step = step._replace(regions=competing([0, 320], 300, 330))
    selection = selector.select(step)
    assert selection.counts.tolist() == [[10, 10], [0, 0]]
    assert bool(((selection.slots >= 0) & (selection.slots < 330)).all())


def test_one_centroid_for_each_token_is_exact():
    keys = draw(257)
    selector = built(keys, bits=8, iterations=1)
    query = 4 * torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(5))
    step = step_of(query, keys, 0, 257, Budget(tokens=32))
    ours, exact = selector.select(step).slots[0], ExactSelector().select(step).slots[0]
    for head in range(2):
        assert len(set(ours[head].tolist()) & set(exact[head].tolist())) >= 30


def test_better_codes_find_more():
    keys = draw(2000, size=32)
    query = 4 * torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(5))
    step = step_of(query, keys, 0, 2000, Budget(tokens=100))
    exact = ExactSelector().select(step).slots

    def recall(**options):
        slots = built(keys, **options).select(step).slots
        return np.mean(
            [len(set(a.tolist()) & set(b.tolist())) / 100 for a, b in zip(slots[0], exact[0], strict=True)]
        )

    coarse, fine = recall(subspaces=2, bits=3), recall(subspaces=8, bits=8)
    assert coarse < fine
    assert fine > 0.7
    assert coarse > 0.1, "better than the 0.05 of chance"


def test_cropped_tokens_leave_no_codes():
    keys, others = draw(500), draw(500, seed=9)
    selector = built(keys)
    selector.crop(333)
    assert selector.length == 333
    selector.append(others[:, :, :120])
    check_codes(selector, torch.cat([keys[:, :, :333], others[:, :, :120]], dim=2))


def test_crop_to_nothing_and_build_again():
    keys, others = draw(500), draw(333, batch=3, seed=9)
    selector = built(keys)
    selector.crop(0)
    assert selector.length == 0
    build(selector, others, [0] * 3)
    check_codes(selector, others)


def test_reordered_rows_take_codes_codebooks_and_axes_along():
    keys, more = draw(300, batch=3), draw(200, batch=4, seed=2)
    selector = built(keys, rotate=True)
    rows = torch.tensor([2, 0, 0, 1])
    selector.reorder(rows)
    check_codes(selector, keys[rows])
    selector.append(more)
    check_codes(selector, torch.cat([keys[rows], more], dim=2))


def test_two_caches_from_one_state_do_not_share_codes():
    keys, more, others = draw(300), draw(15, seed=1), draw(15, seed=2)
    state = built(keys).state()
    assert state["codes"].shape[2] * 64 >= 315, "room for more, so that nobody has to make room"
    first, second = make(), make()
    first.restore(state, 300)
    second.restore(state, 300)
    first.append(more)
    second.append(others)
    check_codes(first, torch.cat([keys, more], dim=2))
    check_codes(second, torch.cat([keys, others], dim=2))


def test_state_goes_round():
    keys = draw(300, batch=2)
    selector, other = built(keys, rotate=True), make(rotate=True)
    other.restore({name: tensor.clone() for name, tensor in selector.state().items()}, selector.length)
    step = step_of(torch.randn(2, 4, 16), keys, 0, 280, Budget(tokens=20))
    for ours, theirs in zip(selector.select(step), other.select(step), strict=True):
        assert torch.equal(ours, theirs)
    assert other.nbytes == selector.nbytes


def test_an_index_that_was_never_built_has_no_state():
    selector = make()
    assert selector.state() == {}
    other = make()
    other.restore({}, 0)
    assert (other.length, other.nbytes) == (0, 0)


def test_using_an_index_before_it_is_built_is_refused():
    keys = draw(30)
    with pytest.raises(ValueError, match="call build first"):
        make().append(keys)
    with pytest.raises(ValueError, match="call build first"):
        make().select(step_of(torch.randn(1, 4, 16), keys, 0, 30, Budget(tokens=3)))


@pytest.mark.parametrize(("size", "subspaces"), [(16, 3), (16, 32), (40, 16)])
def test_a_head_size_that_cannot_be_cut_is_refused(size, subspaces):
    with pytest.raises(ValueError, match=f"{size}.*{subspaces}"):
        built(draw(100, size=size), subspaces=subspaces)


@settings(max_examples=15)
@given(
    st.integers(1, 8), st.sampled_from([1, 2, 3, 5, 8]), st.sampled_from([17, 63, 64, 65, 100]), st.booleans()
)
def test_bytes_are_those_of_the_arrays(bits, subspaces, count, rotate):
    keys = draw(max(count, 2**bits), size=subspaces * 4, heads=3, batch=2)
    selector = built(keys, bits=bits, subspaces=subspaces, rotate=rotate, iterations=1)
    held = selector.state()
    arrays = [held[name] for name in ("codebooks", "codes", "residuals", "rotation") if name in held]
    assert selector.nbytes == sum(array.nbytes for array in arrays)
    step = step_of(torch.randn(2, 6, subspaces * 4), keys, 0, count, Budget(tokens=1))
    codes = count * (-(-subspaces // 2) if bits == 4 else subspaces)
    fitted = sum(array.nbytes for array in arrays) - held["codes"].nbytes
    assert selector.bytes_read(step) == codes + fitted // 6


def test_codes_are_bytes():
    """As int64 they would be eight times as large (a defect of the released code)."""
    held = built(draw(6400)).state()["codes"]
    assert held.dtype == torch.uint8
    assert held.nbytes == 2 * 6400 * 2


class TestRefit:
    """What a long generation of `pieces` leads to: how often the index was built anew."""

    @staticmethod
    def refits(selector, keys, start, piece=31):
        built_at = []
        for stop in range(start + piece, keys.shape[2] + 1, piece):
            selector.append(keys[:, :, stop - piece : stop])
            if selector.stale:
                selector.refit(keys[:, :, :stop], competing([0] * len(keys), stop, stop))
                built_at.append(stop)
        return built_at

    def test_not_while_keys_stay_alike(self):
        keys = draw(4000)
        assert self.refits(built(keys[:, :, :2000]), keys, 2000) == []

    def test_when_keys_change(self):
        keys = draw(4000)
        keys[:, :, 2500:] = 3 * draw(1500, seed=7) + 2
        selector = built(keys[:, :, :2000])
        refits = self.refits(selector, keys, 2000)
        assert refits
        assert 2500 < refits[0] <= 2500 + 2 * 128
        assert len(refits) <= 2

    def test_the_new_index_fits_the_new_keys(self):
        keys = draw(4000)
        keys[:, :, 2500:] = 3 * draw(1500, seed=7) + 2
        once, watched = built(keys[:, :, :2000]), built(keys[:, :, :2000])
        once.append(keys[:, :, 2000:])
        self.refits(watched, keys, 2000)
        new = keys[0, :, 3000:]
        assert quantised_errors(watched, 0, new).mean() < 0.7 * quantised_errors(once, 0, new).mean()

    def test_a_tight_fit_to_few_tokens_is_not_refitted_at_every_step(self):
        """300 tokens on 256 centroids leave hardly any error, so that all that follows looks like drift."""
        keys = draw(2400, size=32)
        refits = self.refits(built(keys[:, :, :300], bits=8, iterations=1), keys, 300)
        assert len(refits) <= 11  # 300 * 1.25 ** 10 > 2400

    def test_after_a_crop_it_need_not_first_grow_back(self):
        keys, others = draw(4000), 3 * draw(2000, seed=7) + 2
        selector = built(keys)
        selector.crop(500)
        both = torch.cat([keys[:, :, :500], others], dim=2)
        assert self.refits(selector, both, 500)[0] < 1000
