"""Whole models: what takes part, what is checked, and the model left as it was."""

import pytest

from keyhole.bench import step as step_module
from keyhole.bench.checks import CheckFailedError
from keyhole.bench.models import weight_bytes
from keyhole.bench.prompt import prompt, random_prompt
from keyhole.bench.shapes import SHAPES, cut, shape_named
from keyhole.bench.step import step
from keyhole.prefill import DensePrefill

from .test_operations import checked_rows

_attend = DensePrefill.attend
PQ = "pqcache(subspaces=4, bits=4, iterations=1)"
SIZES = {"tokens": 300, "dtype": "float32", "read_tokens": 50, "rounds": 2}


@pytest.fixture
def made(monkeypatch):
    """The models that benchmarks make."""
    models = []
    make = step_module.Shape.model

    def remember(*args):
        models.append(make(*args))
        return models[-1]

    monkeypatch.setattr(step_module.Shape, "model", remember)
    return models


def test_step_has_each_method_against_transformers_and_dense(tiny, flusher, made):
    rows = checked_rows(step(tiny, [PQ, "oracle"], flusher=flusher, **SIZES))
    names = {(row["method"].split("(")[0], row["baseline"]) for row in rows}
    assert names == {(m, b) for m in ("pqcache", "oracle") for b in ("transformers sdpa", "keyhole dense")}
    assert {row["read_tokens"] for row in rows} == {50}
    assert made[0].config._attn_implementation == "sdpa"


def test_step_goes_one_after_the_other_where_memory_is_short(tiny, flusher, monkeypatch):
    monkeypatch.setattr(step_module, "free_bytes", lambda *_: 0)
    result = step(tiny, [PQ, "oracle"], flusher=flusher, **SIZES)[0]
    assert len(checked_rows([result])) == 4
    assert any("one after the other" in note for note in result.notes)


def test_bytes_of_a_step_are_weights_and_what_is_read(tiny, flusher, made):
    result = step(tiny, [PQ], flusher=flusher, **SIZES)[0]
    weights = weight_bytes(made[0])
    cache = 2 * 300 * 2 * 2 * 16 * 4
    whole = {one.candidate.name: one.candidate.bytes for one in result.baselines}
    assert whole["transformers sdpa"] == weights + cache
    assert weights < result.timed[0].candidate.bytes < weights + cache


def test_untied_embeddings_are_not_counted(tiny):
    untied = type(tiny)(**{**vars(tiny), "tied": False})
    models = [random_prompt(shape, 20, "float32", 0)[0] for shape in (tiny, untied)]
    assert weight_bytes(models[0]) == weight_bytes(models[1])


def test_prompt(tiny, flusher):
    model, ids = random_prompt(tiny, 90, "float32", 0)
    result = prompt(model, ids, [PQ, "dense"], rounds=2, flusher=flusher, note="random weights")[0]
    rows = checked_rows([result])
    assert [row["baseline"] for row in rows] == ["transformers sdpa"] * 2
    assert rows[0]["bytes"] == weight_bytes(model) + 2 * 2 * 2 * 16 * 90 * 4
    assert not [note for note in result.notes if "KL" in note]
    assert model.config._attn_implementation == "sdpa"


def test_a_prompt_that_is_not_computed_exactly_says_how_far_off_it_is(tiny, flusher):
    model, ids = random_prompt(tiny, 300, "float32", 0)
    sparse = [f"sale(tau={tau}, sinks=0, window=0, means=false, dense_below=0)" for tau in (0.5, 1e-30)]
    notes = prompt(model, ids, sparse, rounds=1, flusher=flusher, note="random weights")[0].notes
    far, near = (float(note.split("KL ")[1].split()[0]) for note in notes if "KL" in note)
    assert far > near == 0


def test_a_prompt_with_other_logits_is_not_timed(tiny, flusher, monkeypatch):
    model, ids = random_prompt(tiny, 90, "float32", 0)
    monkeypatch.setattr(DensePrefill, "attend", lambda *args: -_attend(*args))
    with pytest.raises(CheckFailedError, match="the prompt's last logits by dense"):
        prompt(model, ids, ["dense"], rounds=1, flusher=flusher, note="random weights")


@pytest.mark.parametrize("family", sorted({shape.family for shape in SHAPES.values()}))
def test_every_family_of_the_shapes_can_be_stepped(tiny, flusher, family):
    shape = type(tiny)(**{**vars(tiny), "family": family})
    checked_rows(step(shape, [PQ], flusher=flusher, **{**SIZES, "rounds": 1}))


def test_shapes_have_the_parameters_their_names_say():
    billions = {name: round(shape.parameters / 1e9, 1) for name, shape in SHAPES.items()}
    assert billions == {
        "SmolLM2-135M": 0.1,
        "Llama-3.2-1B": 1.2,
        "Llama-3.2-3B": 3.2,
        "Llama-3.1-8B": 8.0,
        "Qwen2.5-7B": 7.6,
        "Qwen3-0.6B": 0.6,
        "Qwen3-1.7B": 1.7,
        "Qwen3-4B": 4.0,
        "Qwen3-8B": 8.2,
    }


def test_unknown_shapes_and_depths_are_refused(tiny):
    with pytest.raises(ValueError, match=r"did you mean Qwen3-0\.6B"):
        shape_named("Qwen3-0.6b")
    with pytest.raises(ValueError, match="3 layers"):
        cut(tiny, 3)
    assert cut(tiny, 1).layers == 1
    assert cut(tiny, 0) == tiny
