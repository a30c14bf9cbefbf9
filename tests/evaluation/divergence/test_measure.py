"""Divergence from full attention, against sums by hand and against one text at a time."""

import math

import pytest
import torch

import keyhole
from keyhole.evaluation.candidates import candidates
from keyhole.evaluation.divergence import Passage, divergence, measure
from keyhole.evaluation.divergence.forced import divergence_of
from keyhole.evaluation.divergence.rows import DivergenceRow
from tests.small import small
from tests.tiny import prompt, tiny_model

CONTEXT, TOKENS = 120, 6
METHODS = [small(name) for name in ("oracle", "pqcache", "shadowkv", "snapkv", "h2o")]


def passage(seed):
    return Passage(f"text{seed}", prompt(CONTEXT + TOKENS, seed=seed)[0], str(seed))


TEXTS = [passage(seed) for seed in range(3)]


def run(methods=METHODS, budgets=(0.1, "mass=0.8"), texts=TEXTS, model=None, **changes):
    model = model or tiny_model("llama")
    options = {"context": CONTEXT, "tokens": TOKENS} | changes
    return divergence(model, candidates(methods, budgets), texts, **options)


@pytest.fixture(scope="module")
def rows():
    return run(batch=3)


def test_a_row_for_each_candidate(rows):
    names = [(row.method.split("(")[0], row.budget) for row in rows]
    both = [(name, budget) for name in ("oracle", "pqcache", "shadowkv") for budget in ("0.1", "mass=0.8")]
    assert names == [("dense", "full"), *both, ("snapkv", "0.1"), ("h2o", "0.1")]
    assert all(row.complete and len(row.by_text) == 3 for row in rows)


def test_dense_is_its_own_measure(rows):
    dense = rows[0].summary
    assert (dense.kl_worst, dense.top1, dense.perplexity_ratio, dense.read_fraction) == (0, 1, 1, 1)
    assert dense.perplexity == dense.perplexity_dense


def test_full_attention_through_selection_diverges_by_rounding_only():
    row = run(["oracle(sinks=2, window=6)"], ["mass=1.0"])[1]
    assert row.summary.kl_worst < 1e-6
    assert row.summary.top1 == 1


def by_hand(model, method, text):
    """KL, agreement and losses of one text, from whole calls of the model with lists of tokens."""
    found = []
    with keyhole.attach(model, "dense"), torch.no_grad():
        dense = model(text.tokens[None, :-1]).logits[0, CONTEXT - 1 :].double()
    with keyhole.attach(model, method), torch.no_grad():
        cache = keyhole.KeyholeCache(model, method)
        cache.prompt_length = CONTEXT - 1
        model(text.tokens[None, : CONTEXT - 1], past_key_values=cache)
        for layer in keyhole.served_layers(cache):
            layer.prepare()
        for place in range(TOKENS):
            fed = text.tokens[None, CONTEXT - 1 + place : CONTEXT + place]
            logits = model(fed, past_key_values=cache).logits[0, -1].double()
            p, q = dense[place].softmax(-1), logits.softmax(-1)
            kl = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
            following = int(text.tokens[CONTEXT + place])
            found.append((kl, bool(p.argmax() == q.argmax()), -math.log(float(q[following]))))
    return found


def test_against_sums_by_hand(rows):
    model = tiny_model("llama")
    for row in (row for row in rows if row.method.startswith(("oracle", "pqcache")) and row.budget == "0.1"):
        recipe = next(
            each.recipe
            for each in candidates(METHODS, [0.1])
            if (each.method, each.budget) == (row.method, "0.1")
        )
        for text, score in zip(TEXTS, row.by_text, strict=True):
            expected = by_hand(model, recipe, text)
            assert score.kl == pytest.approx([kl for kl, _, _ in expected], rel=1e-3, abs=1e-6)
            assert score.agreed == sum(agreed for _, agreed, _ in expected)
            assert score.loss == pytest.approx(sum(loss for *_, loss in expected) / TOKENS, rel=1e-4)
        every = [kl for score in row.by_text for kl in score.kl]
        assert row.summary.kl_mean == pytest.approx(sum(every) / len(every))
        assert row.summary.kl_worst == max(every)


def test_a_batch_is_as_one_text_at_a_time(rows):
    alone = run(batch=1)
    for many, one in zip(rows, alone, strict=True):
        assert (many.method, many.budget) == (one.method, one.budget)
        for a, b in zip(many.by_text, one.by_text, strict=True):
            assert a.name == b.name
            assert a.kl == pytest.approx(b.kl, rel=1e-2, abs=1e-5)
        assert many.summary.read_fraction == pytest.approx(one.summary.read_fraction, rel=1e-4)
        # Buffers are as wide as the widest row needs.
        assert many.summary.kv_bytes_device == pytest.approx(one.summary.kv_bytes_device, rel=0.02)


def test_it_repeats_exactly(rows):
    assert run(batch=3) == rows


def test_what_was_known_is_not_measured_again(rows, monkeypatch):
    monkeypatch.setattr(measure, "Prompt", None)
    assert run(known=rows, batch=3) == rows


def test_it_goes_on_where_it_was_stopped(rows):
    class Stop(Exception):  # noqa: N818
        pass

    held = []

    def stop(found):
        held[:] = found
        if len(found) == 4:
            raise Stop

    with pytest.raises(Stop):
        run(found=stop, batch=3)
    assert len(held) == 4
    assert run(known=held, batch=3) == rows


def test_half_the_texts_are_no_complete_row():
    held = []
    rows = run(["oracle(sinks=2, window=6)"], [0.1], batch=2, found=lambda found: held.append(found))
    assert [[len(row.by_text) for row in found] for found in held] == [[1], [1, 1], [3, 1], [3, 3]]
    assert not held[0][0].complete
    assert held[-1] == rows


def test_rows_of_other_settings_are_not_taken(rows):
    found = run(
        ["dense"],
        [0.1],
        known=rows,
        tokens=TOKENS - 1,
        texts=[t._replace(tokens=t.tokens[:-1]) for t in TEXTS],
    )
    assert len(found[0].by_text[0].kl) == TOKENS - 1


def test_mass_is_measured_for_budgets_of_mass(rows):
    by_mass = [row for row in rows if row.budget == "mass=0.8"]
    for row in by_mass:
        assert row.mass_target == 0.8
        assert 0 < row.summary.mass_exact <= 1
        assert 0 <= row.summary.mass_reached <= 1
    assert by_mass[0].summary.mass_reached == 1  # the oracle
    assert all(row.summary.mass_exact is None for row in rows if row.budget == "0.1")
    asked = run([small("oracle"), small("snapkv")], [0.1], exact_mass=True)[1:]
    assert [row.summary.mass_exact is None for row in asked] == [False, True]


def test_what_a_method_refuses_is_left_out_where_that_is_wanted():
    told = []
    methods = ["oracle(sinks=2, window=6)", "sale(thresholds='/nowhere')"]
    found = run(methods, [0.1], refused=lambda candidate, error: told.append((candidate.method, str(error))))
    assert [row.budget for row in found] == ["full", "0.1"]
    assert len(told) == 1
    assert "nowhere" in told[0][1]
    with pytest.raises(ValueError, match="nowhere"):
        run(methods, [0.1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"context": 1}, "context=1"),
        ({"tokens": 0}, "tokens=0"),
        ({"context": 1020}, "at most 1018"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_bad_input_is_found_before_any_work(changes, said, monkeypatch):
    monkeypatch.setattr(measure, "Prompt", None)
    with pytest.raises(ValueError, match=said):
        run(**changes)


def test_what_dense_excludes_counts_for_nothing():
    dense = torch.tensor([0.5, 0.5, 0.0]).log()
    other = torch.tensor([0.25, 0.25, 0.5]).log()
    assert divergence_of(dense, other) == pytest.approx(math.log(2))
    assert divergence_of(other, dense) == math.inf
    assert divergence_of(dense, dense) == 0


def test_errors_are_measured_for_budgets_of_error():
    row = run(["oracle(sinks=2, window=6)"], [0.1, "error=0.5"])[2]
    assert (row.budget, row.error_target, row.mass_target) == ("error=0.5", 0.5, None)
    assert 0.9 <= row.summary.error_kept <= 1
    assert row.summary.error_exact <= row.summary.error_estimated <= 0.5
    assert DivergenceRow.of(row.record()) == row
