import gc

import pytest
import torch

import keyhole
from keyhole.cache.layer import LayerCache
from keyhole.evaluation import compare
from tests.evaluation.small_text import TEXT, byte_model, byte_tokenizer, own_byte_model
from tests.small import small

KEYS = [
    *("method", "task", "context", "budget", "samples", "accuracy", "accuracy_full", "read_fraction"),
    *("mass_estimated", "mass_exact", "kv_bytes_read_per_token"),
    *("kv_bytes_device", "kv_bytes_host", "kv_bytes_disk", "prefill_s", "decode_ms", "weights_read"),
]
SMALL = "sinks=2, window=6"


def run(model=None, **changes):
    options = {
        "methods": [f"oracle({SMALL})", f"pqcache({SMALL}, bits=4)"],
        "budgets": [0.1, 1.0, "mass=0.8"],
        "tasks": ["single", "multivalue"],
        "context": 600,
        "samples": 2,
        "haystack": TEXT,
    }
    return compare(model or byte_model(), byte_tokenizer(), **(options | changes))


@pytest.fixture(scope="module")
def rows():
    return run()


def only(rows, method, budget, task="mean"):
    (row,) = [r for r in rows if r.method.startswith(method) and (r.budget, r.task) == (budget, task)]
    return row


def test_a_row_for_each_candidate_and_task(rows):
    assert len(rows) == (1 + 2 * 3) * 3
    assert [row.task for row in rows[:3]] == ["single", "multivalue", "mean"]
    assert [row.samples for row in rows[:3]] == [2, 2, 4]
    assert {row.context for row in rows} == {600}
    assert [list(row.record()) for row in rows] == [KEYS] * len(rows)


def test_dense_is_full(rows):
    for row in rows:
        assert row.accuracy_full == only(rows, "dense", "full", row.task).accuracy
    dense = only(rows, "dense", "full")
    assert (dense.read_fraction, dense.mass_estimated, dense.mass_exact) == (1, 1, 1)
    assert dense.accuracy == dense.accuracy_full


@pytest.mark.parametrize("method", ["oracle", "pqcache"])
def test_full_budget_is_dense(rows, method):
    full, dense = only(rows, method, "1.0"), only(rows, "dense", "full")
    assert (full.accuracy, full.read_fraction, full.mass_exact) == (dense.accuracy, 1, 1)
    assert full.kv_bytes_read_per_token == dense.kv_bytes_read_per_token


@pytest.mark.parametrize("method", ["oracle", "pqcache"])
def test_a_part_is_read(rows, method):
    row, dense = only(rows, method, "0.1"), only(rows, "dense", "full")
    assert 0.1 < row.read_fraction < 0.13
    assert 0 < row.mass_exact < 1
    assert row.kv_bytes_read_per_token < dense.kv_bytes_read_per_token
    assert row.kv_bytes_device >= dense.kv_bytes_device
    assert (row.kv_bytes_host, row.kv_bytes_disk) == (0, 0)
    assert min(row.prefill_s, row.decode_ms) > 0


def test_the_oracle_knows_its_mass_and_reaches_its_target(rows):
    row = only(rows, "oracle", "mass=0.8")
    assert row.mass_estimated == pytest.approx(row.mass_exact, abs=1e-5)
    assert (row.mass_target, row.mass_reached) == (0.8, 1.0)
    assert only(rows, "oracle", "0.1").mass_reached is None


def test_the_mean_is_over_the_tasks(rows):
    parts = [only(rows, "oracle", "0.1", task) for task in ("single", "multivalue")]
    assert only(rows, "oracle", "0.1").accuracy == pytest.approx(sum(row.accuracy for row in parts) / 2)


def test_a_part_of_it_repeats_alone(rows):
    found = run(tasks=["single"], methods=[f"oracle({SMALL})"], budgets=[0.1])
    again, before = only(found, "oracle", "0.1", "single"), only(rows, "oracle", "0.1", "single")
    assert (again.accuracy, again.mass_exact) == (before.accuracy, before.mass_exact)


def test_another_seed_asks_otherwise(rows):
    found = run(tasks=["single"], methods=[f"oracle({SMALL})"], budgets=[0.1], seed=1)
    # The random model answers all wrong, so what differs is what is read.
    other, before = only(found, "oracle", "0.1", "single"), only(rows, "oracle", "0.1", "single")
    assert other.mass_exact != before.mass_exact


def test_what_drops_tokens_says_nothing_of_mass():
    row = run(methods=["snapkv(sinks=2, window=6)"], budgets=[0.3], tasks=["single"])[-1]
    assert (row.mass_exact, row.mass_estimated, row.recall) == (None, None, None)
    assert row.read_fraction == pytest.approx(0.3, abs=0.02)
    assert row.record()["mass_exact"] is None


def test_a_later_question_is_the_one_that_counts(monkeypatch):
    """It is asked in the same cache, behind the first answer, and its answer is scored."""
    seen = []
    monkeypatch.setattr("keyhole.evaluation.comparison.score", lambda asked, _: seen.append(asked) or 1.0)
    model, lengths = byte_model(), []
    forward = model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda *args, **kwargs: lengths.append(kwargs["input_ids"].shape[1]) or forward(*args, **kwargs),
    )
    rows = run(
        methods=["snapkv(sinks=2, window=6)"], budgets=[0.3], tasks=["multi_turn"], samples=1, context=800
    )
    assert len(rows) == 4
    assert all(asked.question.startswith("\nThe secret code of") for asked in seen)
    assert not any(hasattr(asked, "later") for asked in seen)
    asked = len(seen[0].question.encode())
    assert [length for length in lengths[1:] if length > 1] == [asked, asked]


def test_methods_may_be_objects():
    found = run(methods=[small("pqcache")], budgets=[8], tasks=["single"], samples=1)
    assert [row.budget for row in found] == ["full", "full", "8", "8"]


def test_no_cache_outlives_it(rows):  # noqa: ARG001 - the rows must exist
    gc.collect()
    assert not [held for held in gc.get_objects() if isinstance(held, LayerCache)]


def test_the_model_is_left_as_it_was(rows):  # noqa: ARG001 - after a run
    assert byte_model().config._attn_implementation == "sdpa"


def test_progress():
    told = []
    run(methods=["dense"], tasks=["single"], progress=lambda *told_now: told.append(told_now))
    assert told == [("single", 0, 2), ("single", 1, 2)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": 0}, "samples=0"),
        ({"tasks": ["singel"]}, "'singel'"),
        ({"tasks": []}, "no task"),
        ({"context": 30}, "'single' needs at least"),
        ({"context": 1020}, "at most 9"),
        ({"budgets": ["0"]}, "0 tokens"),
        ({"methods": ["nosuch"]}, "nosuch"),
    ],
)
def test_bad_input_is_found_before_any_work(changes, said, monkeypatch):
    monkeypatch.setattr("keyhole.evaluation.comparison.Prompt", None)
    with pytest.raises(ValueError, match=said):
        run(**changes)


def test_not_a_number_in_the_keys():
    model = own_byte_model()
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0, 0] = torch.nan
    with pytest.raises(keyhole.NonFiniteError, match="keys"):
        run(model)
    assert model.config._attn_implementation == "sdpa"
