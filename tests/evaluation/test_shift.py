import pytest
import torch

from keyhole.evaluation.shift import QUERIES, attention_shift, choose_layers
from keyhole.methods.delta import Delta, default_layers
from tests.tiny import fresh_model, prompt, tiny_model


def test_shift_of_attention_between_layers():
    """Worked out again from the model's own attention maps."""
    model = fresh_model("llama", num_hidden_layers=3, attn_implementation="eager")
    ids = prompt(200)
    with torch.no_grad():
        maps = model(ids, output_attentions=True).attentions
    last = 200 - QUERIES - Delta.window
    seen = [one[0, :, -QUERIES:, Delta.sinks : last].amax(0) for one in maps]
    found = attention_shift(model, [ids])
    assert list(found) == [0, 1, 2]
    assert found[0] == 0
    for layer in (1, 2):
        wanted = 1 - torch.cosine_similarity(seen[layer - 1], seen[layer]).mean()
        assert found[layer] == pytest.approx(float(wanted), abs=1e-3)


def test_texts_are_averaged():
    model, texts = tiny_model("llama"), [prompt(200), prompt(170, seed=1)]
    alone = [attention_shift(model, [text])[1] for text in texts]
    assert attention_shift(model, texts)[1] == pytest.approx(sum(alone) / 2)


def test_the_models_attention_is_its_own_again():
    model = fresh_model("llama")
    before = model.config._attn_implementation
    attention_shift(model, [prompt(200)])
    assert model.config._attn_implementation == before


def test_refuses_short_texts():
    for texts in ([], [prompt(200), prompt(100)]):
        with pytest.raises(ValueError, match="at least 144 tokens"):
            attention_shift(tiny_model("llama"), texts)


def test_refuses_a_model_with_one_layer_to_compare():
    with pytest.raises(ValueError, match="needs two"):
        attention_shift(tiny_model("gemma3"), [prompt(200)])


def test_peaks_are_chosen_spread_over_depth():
    shift = dict.fromkeys(range(28), 0.1)
    shift |= {0: 0.0, 1: 0.9, 3: 0.9, 11: 0.8, 12: 0.7, 20: 0.5, 27: 1.0}
    full, leaders = choose_layers(shift)
    assert full == (0,)
    assert {2, 11, 20, 27} <= set(leaders)
    # 3 is too near the first leader, 12 to 11, and nothing leads before the first leader.
    assert not {1, 3, 12} & set(leaders)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 9, 18, 28, 80])
def test_even_shift_gives_as_many_as_the_default(layers):
    found = choose_layers(dict.fromkeys(range(layers), 0.5))
    assert list(map(len, found)) == list(map(len, default_layers(layers)))


def test_layers_are_counted_as_in_the_model():
    assert choose_layers({1: 0.0, 3: 0.4, 5: 0.9, 7: 0.1}) == ((1,), (5,))
