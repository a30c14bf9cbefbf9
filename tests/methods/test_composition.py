"""Retain and select together: what is read is among what is kept, and what does not go together says so."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import keyhole
from keyhole.attention import Logits
from keyhole.core.errors import SpecError
from keyhole.methods import METHODS, EvictionMethod, Recipe
from keyhole.methods.registry import METHODS as REGISTERED
from tests.composed import Composed
from tests.evictions import HISTORIES
from tests.layers import check_dense
from tests.tiny import prompt, tiny_model

KEEP = "sinks=2, window=6, prompt=pieces, every=0, heads=uniform, layers=uniform"
READ = "sinks=1, window=4, dense_below=0"
EVICTING = [name for name, kind in METHODS.items() if issubclass(kind, EvictionMethod)]
# Those that read by their own heads' slots, with options for short texts.
SELECTING = {
    "oracle": "",
    "pqcache": ", subspaces=4, bits=3, iterations=2",
    "quest": ", page=3",
    "mpcache": ", keep=1.0, share=false, fine=2, coarse=6",
    "tokenselect": ", per_head=true, reuse=0.9",
    "clusterkv": ", tokens=3",
    "retroinfer": ", tokens=3",
    "loki": ", rank=4",
    "doublesparsity": ", channels=4",
    "magicpig": ", bits=2, tables=9",
}

SAMPLING = {"magicpig"}  # these read at most what the budget allows


def evicting(name, budget=30, **more):
    return f"{name}(budget={budget}, {KEEP}{''.join(f', {k}={v}' for k, v in more.items())})"


def selecting(name, budget=5, **more):
    return f"{name}(budget={budget}, {READ}{SELECTING[name]}{''.join(f', {k}={v}' for k, v in more.items())})"


def test_all_that_work_on_slots_are_here():
    able = {
        name for name, kind in METHODS.items() if hasattr(kind, "pays_from") and not kind().needs_positions
    }
    assert able <= set(SELECTING)


@pytest.mark.parametrize("second", SELECTING)
@pytest.mark.parametrize("first", EVICTING)
def test_what_is_read_is_among_what_is_kept(first, second):
    layer = Composed(f"{evicting(first)} + {selecting(second)}", batch=2, padding=[0, 17])
    layer.append(60)
    layer.attend(60)
    for _ in range(12):
        layer.step()
        assert layer.selected
        read = [len(read) for row in layer.read for read in row]
        assert all(5 <= count <= 10 for count in read) if second in SAMPLING else read == [10] * 4


@pytest.mark.parametrize("second", SELECTING)
def test_budgets_are_shares_of_the_context_that_was_seen(second):
    layer = Composed(f"{evicting('snapkv', 0.5)} + {selecting(second, 0.1)}")
    layer.append(100)
    layer.attend(100)
    layer.step()
    assert layer.selected
    assert [len(head) for head in layer.kept()[0]] == [51, 51]
    read = [len(read) for read in layer.read[0]]
    assert all(5 <= count <= 15 for count in read) if second in SAMPLING else read == [15] * 2


def test_each_row_keeps_to_its_own_budget():
    """The long row may read all that is kept, the short one may not."""
    spec = f"{evicting('snapkv')} + {selecting('quest', 0.3)}"
    layer = Composed(spec, batch=2, padding=[0, 60])
    layer.append(100)
    layer.attend(100)
    layer.step()
    assert [[len(read) for read in row] for row in layer.read] == [[31, 31], [17, 17]]


def test_an_index_made_beforehand_is_of_what_the_next_step_keeps():
    """Of a batch with padding, whose prompt is dropped from only then."""
    spec = f"{evicting('snapkv')} + {selecting('quest')}".replace("prompt=pieces", "prompt=whole")
    layer, prepared = (Composed(spec, batch=2, padding=[0, 50]) for _ in range(2))
    for each in (layer, prepared):
        each.append(60)
        each.attend(60)
    prepared.cache.prepare(prepared.mask())
    assert prepared.cache.storage.length == prepared.cache.indexed == 30
    # The second row's ten tokens begin behind filling; one is a sink.
    assert prepared.cache.selector.state()["first"].tolist() == [1, 21]
    for each in (layer, prepared):
        each.step()
        assert each.selected
    assert layer.read == prepared.read


@pytest.mark.parametrize("second", SELECTING)
@pytest.mark.parametrize("first", EVICTING)
def test_full_budgets_are_dense(first, second):
    layer = Composed(f"{evicting(first, 1.0)} + {selecting(second, 1.0)}", batch=2, padding=[0, 17])
    for _ in range(2):
        layer.append(40)
        check_dense(layer, layer.attend(40), 40)
        for _ in range(3):
            check_dense(layer, layer.step())


@pytest.mark.parametrize("second", SELECTING)
def test_order_does_not_matter(second):
    stages = evicting("windowkv"), selecting(second)
    layers = [Composed(" + ".join(each)) for each in (stages, stages[::-1])]
    for layer in layers:
        layer.append(60)
        layer.attend(60)
        for _ in range(3):
            layer.step()
    assert layers[0].read == layers[1].read
    assert layers[0].selected


@pytest.mark.parametrize("first", ["windowkv", "snapkv"])
@pytest.mark.parametrize("second", SELECTING)
@settings(max_examples=10)
@given(
    HISTORIES,
    st.booleans(),
    st.sampled_from(["pieces", "whole"]),
    st.integers(0, 9),
)
def test_any_history(first, second, history, padded, when, seed):
    """Prompts and turns, crops, beams and restarts, each step checked."""
    spec = f"{evicting(first)} + {selecting(second)}".replace("prompt=pieces", f"prompt={when}")
    Composed(spec, batch=2, padding=[0, 6] if padded else None, seed=seed).live(spec, history)


@settings(max_examples=25)
@given(
    HISTORIES,
    st.booleans(),
    st.sampled_from(["device", "host", "disk"]),
    st.booleans(),
    st.integers(0, 9),
)
def test_any_history_of_both_stages_of_one_method(history, padded, place, per_head, seed):
    spec = f"mpcache(keep=30, budget=5, sinks=2, window=6, fine=2, coarse=6, dense_below=0, place={place}"
    spec += f", per_head={str(per_head).lower()})"
    Composed(spec, batch=2, padding=[0, 6] if padded else None, seed=seed).live(spec, history)


def test_a_crop_of_generated_tokens_leaves_the_index():
    """As assisted decoding crops, in every round."""
    layer = Composed(f"{evicting('snapkv')} + {selecting('quest')}")
    layer.append(60)
    layer.attend(60)
    for _ in range(12):
        layer.step()
    layer.crop(layer.length - 5)
    assert layer.cache.indexed >= 24
    for _ in range(12):
        layer.step()


def test_a_crop_into_what_was_dropped_from():
    """Heads then hold different numbers of tokens: all of them are read, in prompts too."""
    spec = (
        f"{evicting('snapkv')} + tokenselect(per_head=true, sparse_prefill=true, chunk=8, budget=5, {READ})"
    )
    layer, plain = Composed(spec, kv_heads=4), Composed(evicting("snapkv"), kv_heads=4)
    outs = []
    for each in (layer, plain):
        each.append(60)
        each.attend(60)
        each.crop(40)
        assert len({len(head) for head in each.kept()[0]}) > 1
        each.step()
        assert not each.selected
        each.append(9)
        outs.append(each.attend(9))
        each.step()
    torch.testing.assert_close(*outs)


@pytest.mark.parametrize("place", ["host", "disk"])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_kept_tokens_lie_where_the_selecting_stage_places_them(place, kv_dtype):
    spec = f"{evicting('snapkv', 100)} + {selecting('quest', 9, place=place, kv_dtype=kv_dtype)}"
    layer = Recipe.parse(spec).layers(1)[0]
    draw = torch.Generator().manual_seed(0)
    first, more = (torch.randn(1, 2, count, 16, generator=draw) for count in (400, 1))
    layer.append(first, first)
    layer.attend(torch.randn(1, 4, 400, 16, generator=draw), Logits(0.25))
    assert layer.storage.length == 100
    for _ in range(80):
        layer.append(more, more)
        assert torch.isfinite(layer.attend(torch.randn(1, 4, 1, 16, generator=draw), Logits(0.25))).all()
    assert layer.storage.length == 180
    assert layer.usage.tokens > layer.usage.read
    assert getattr(layer.footprint, place) > 0


@pytest.mark.parametrize(
    "spec", ["a2ats", "shadowkv", "delta", "tokenselect", "mpcache(keep=1.0, share=true)"]
)
@pytest.mark.parametrize("first", EVICTING)
def test_what_needs_positions_is_refused(first, spec):
    with pytest.raises(SpecError, match=r"needs the positions of tokens.*quest"):
        Recipe.parse(f"{spec} + {evicting(first)}")


def test_all_registered_methods_say_whether_they_need_positions():
    """Each one that selects goes with eviction or is refused; none is forgotten."""
    for name, kind in REGISTERED.items():
        method = kind()
        if issubclass(kind, EvictionMethod) or not hasattr(method, "sinks") or name == "mpcache":
            continue
        if method.needs_positions:
            with pytest.raises(SpecError):
                Recipe.parse(f"{name} + snapkv")
        else:
            Recipe.parse(f"{name} + snapkv")


@pytest.mark.parametrize(
    ("spec", "way"),
    [
        ("snapkv(every=1) + quest", r"snapkv\(every=0\)"),
        ("streamingllm + quest", r"streamingllm\(every=0\)"),
        ("adakv + quest", r"adakv\(heads=uniform\)"),
        ("quest + snapkv(heads=adaptive)", r"snapkv\(heads=uniform\)"),
        ("snapkv + mpcache", "both answer the question 'retain'"),
        ("snapkv + windowkv", "both answer the question 'retain'"),
        ("mpcache + quest", "both answer the question 'select'"),
        ("snapkv + tokenselect(sparse_prefill=true)", "heads and layers do not share"),
        ("snapkv + tokenselect(per_head=true, renumber=true)", "needs the positions"),
        ("snapkv + pqcache(renumber=true)", "needs the positions"),
        ("snapkv + quest(sparse_prefill=true)", "needs the positions"),
        ("adakv + tokenselect(sparse_prefill=true, per_head=true)", "heads=uniform"),
    ],
)
def test_what_does_not_go_together_names_the_way_out(spec, way):
    with pytest.raises(SpecError, match=way):
        Recipe.parse(spec)


@pytest.mark.parametrize(
    "spec", ["streamingllm(every=1)", "adakv(every=2)", "mpcache", "snapkv + mpcache(keep=1.0, share=false)"]
)
def test_what_goes_alone_or_together_is_not_refused(spec):
    assert Recipe.parse(str(Recipe.parse(spec))) == Recipe.parse(spec)


def test_a_sparse_prompt_that_is_dropped_from():
    """Later pieces read by election among what is kept."""
    spec = evicting("snapkv", 40) + " + tokenselect(per_head=true, sparse_prefill=true, chunk=8, budget=5, "
    layer = Composed(spec + READ + ")", batch=2, padding=[0, 9])
    for piece in (50, 30, 17):
        layer.append(piece)
        assert torch.isfinite(layer.attend(piece)[:, :, -1]).all()
    for _ in range(3):
        layer.step()
        assert layer.selected


@pytest.mark.parametrize(
    "spec",
    [
        "windowkv(budget=0.5, sinks=2, window=6, group=2) + quest(budget=0.1, sinks=1, window=4, page=3)",
        "mpcache(keep=0.5, budget=0.1, sinks=2, window=6, fine=2, coarse=6)",
    ],
)
def test_a_model_under_beams_and_turns(spec):
    model = tiny_model("llama", num_hidden_layers=4)
    first, second = prompt(120, rows=2), prompt(20, rows=2, seed=3)
    with keyhole.attach(model, spec) as attached:
        out = model.generate(first, max_new_tokens=6, num_beams=3, do_sample=False)
        assert out.shape == (2, 126)
        assert 0 < attached.usage.read < 0.4 * attached.usage.tokens
        turned = model.generate(
            torch.cat([first, second], 1),
            max_new_tokens=6,
            do_sample=False,
            past_key_values=_cache(model, spec, first),
        )
    assert turned.shape == (2, 146)


def _cache(model, spec, ids):
    cache = keyhole.make_cache(model, spec)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    return cache


@pytest.mark.parametrize("second", SELECTING)
def test_memory_of_what_is_dropped_is_given_back(second):
    """Keys and values, whatever an index takes beside."""
    layer = Composed(f"{evicting('snapkv', 64)} + {selecting(second)}", size=64)
    layer.append(4096)
    before = layer.cache.storage.footprint.device
    layer.attend(4096)
    assert layer.cache.storage.footprint.device < before / 8
