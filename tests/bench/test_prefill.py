import pytest

from keyhole.bench.prefill import prefill
from tests.tiny import prompt, tiny_model


def test_a_prompt_of_every_layer_with_its_error(flusher):
    result = prefill(
        tiny_model("llama"),
        prompt(200),
        "sale(tau=0.05, window=0, sinks=0, dense_below=0)",
        rounds=1,
        flusher=flusher,
    )[0]
    assert [row.baseline for row in result.rows] == ["sdpa enable_gqa", "sdpa by group"]
    assert all(row.tokens == 200 and row.ms > 0 and row.op == "prefill" for row in result.rows)
    assert [note.split(":")[0] for note in result.notes if "relative output error" in note] == [
        "layer 0",
        "layer 1",
    ]


def test_a_method_that_computes_whole_prompts_has_no_error(flusher):
    notes = prefill(tiny_model("llama"), prompt(50), "dense", rounds=1, flusher=flusher, layers=(1,))[0].notes
    assert [note for note in notes if "layer" in note] == [
        "layer 1: relative output error 0.00%, of a head at most 0.00%"
    ]


def test_refuses_a_layer_there_is_not(flusher):
    with pytest.raises(ValueError, match="layer 7 is not one of 0, 1"):
        prefill(tiny_model("llama"), prompt(50), "dense", rounds=1, flusher=flusher, layers=(7,))
