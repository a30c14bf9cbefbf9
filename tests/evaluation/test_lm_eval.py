"""The model class of lm-eval against lm-eval's own."""

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from keyhole.core.errors import SpecError
from keyhole.evaluation.lm_eval import KeyholeLM
from tests.evaluation.small_text import byte_model, byte_tokenizer

TEXT = "The sea is calm tonight. The tide is full. " * 4
CHOICES = (" and the moon", " but", "?", " and the tide")


def _lm(kind=KeyholeLM, **options):
    return kind(pretrained=byte_model(), tokenizer=byte_tokenizer(), **options)


def _requests(kind: str, *arguments) -> list[Instance]:
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def _generate(lm) -> list[str]:
    asked = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    return lm.generate_until(_requests("generate_until", (TEXT, asked), (TEXT[:60], asked)))


def test_it_is_registered():
    assert get_model("keyhole") is KeyholeLM


def test_generation_by_dense_is_that_of_lm_evals_class():
    assert _generate(_lm(method="dense")) == _generate(_lm(HFLM))


@pytest.mark.parametrize("method", ["dense", "oracle(budget=1.0,dense_below=0)", "snapkv(budget=1.0)"])
def test_likelihoods_at_full_budget_are_those_of_lm_evals_class(method):
    asked = _requests("loglikelihood", *((TEXT, choice) for choice in CHOICES), ("", "The"))
    ours, theirs = (lm.loglikelihood(asked) for lm in (_lm(method=method), _lm(HFLM)))
    for (value, greedy), (expected, was_greedy) in zip(ours, theirs, strict=True):
        assert value == pytest.approx(expected, rel=1e-4)
        assert greedy == was_greedy


def test_a_greedy_continuation_is_one():
    lm = _lm(method="dense")
    context = torch.tensor([lm.tok_encode(TEXT)])
    tokens = byte_model().generate(context, max_new_tokens=3, do_sample=False, pad_token_id=0)
    tokens = tokens[0, context.shape[1] :].tolist()
    ((_, greedy),) = lm._loglikelihood_tokens([(None, lm.tok_encode(TEXT), tokens)])
    assert greedy


def test_likelihoods_go_through_the_method():
    asked = _requests("loglikelihood", (TEXT, CHOICES[0]))
    ((few, _),) = _lm(method="streamingllm(budget=8)").loglikelihood(asked)
    ((whole, _),) = _lm(method="dense").loglikelihood(asked)
    assert abs(few - whole) > 1e-3


def test_rolling_likelihoods():
    asked = _requests("loglikelihood_rolling", (TEXT,))
    ours, theirs = (lm.loglikelihood_rolling(asked) for lm in (_lm(method="dense"), _lm(HFLM)))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_context_is_cut_on_the_left_as_by_lm_evals_class():
    ids = torch.arange(40).tolist()
    asked = [(None, ids, [1, 2])]
    ours, theirs = (
        _lm(kind, max_length=16, **options)
        for kind, options in ((KeyholeLM, {"method": "dense"}), (HFLM, {}))
    )
    (scored,), (expected,) = ours._loglikelihood_tokens(asked), theirs._loglikelihood_tokens(asked)
    assert scored[0] == pytest.approx(expected[0], rel=1e-4)


def test_usage_is_summed_over_requests():
    lm = _lm(method="oracle(budget=0.2,dense_below=0)")
    _generate(lm)
    first = lm.get_model_info()["keyhole"]
    assert first["requests"] == 2
    assert 0 < first["read_fraction"] < 0.9
    lm.loglikelihood(_requests("loglikelihood", (TEXT, CHOICES[0]), (TEXT, CHOICES[3])))
    both = lm.get_model_info()["keyhole"]
    assert both["requests"] == 4
    assert both["tokens_read"] > first["tokens_read"]
    assert both["method"].startswith("oracle")


def test_nothing_read_has_no_share():
    assert _lm().get_model_info()["keyhole"]["read_fraction"] is None


def test_an_unknown_method_is_found_before_the_model_is_loaded():
    with pytest.raises(SpecError, match="pqcache"):
        KeyholeLM(pretrained="/nowhere", method="pqcach")
