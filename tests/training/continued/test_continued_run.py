"""Continued training: what learns, what is resumed, and what is written."""

import json
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from tests.evaluation.small_text import TEXT, byte_model, byte_tokenizer
from tests.tiny import fresh_model, prompt, tiny_model
from transformers import AutoModelForCausalLM

import keyhole
from keyhole.core.errors import UnsupportedModelError
from keyhole.core.model_info import ModelInfo
from keyhole.engines.transformers.fingerprint import fingerprint
from keyhole.selection.block_lists import BlockRule, sequence_lists
from keyhole.selection.importance import read_heads
from keyhole.training.continued import attention, data, run
from keyhole.training.continued.attention import SelectedAttention
from keyhole.training.continued.data import Texts
from keyhole.training.continued.importance import Importance
from keyhole.training.continued.settings import Settings
from keyhole.training.continued.start import train_further
from keyhole.training.continued.switching import attending

TEXTS = [" ".join(TEXT.sentences)]
RULE = BlockRule(block=8, stride=4, init=1, local=1, blocks=5, recalled=2)
NOSA = "nosa(block=8, stride=4, sinks=8, window=8, budget=24, query_share=0.5)"
INFLLM = "infllm_v2(block=8, stride=4, sinks=8, window=8, budget=24)"
SETTINGS = Settings(NOSA, None, (), False, 4, (48, 64), 1, 1e-3, 0.05, False, True, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    byte_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def heads(model, scale=0.0, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = torch.nn.ModuleList(
        Importance(2, 16, bias=False, generator=generator) for _ in range(model.config.num_hidden_layers)
    )
    for head in found:
        head.scale.data.fill_(scale)
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "olmo2", "granite", "phi3"])
def test_with_all_blocks_a_model_is_itself(family):
    model = tiny_model(family)
    selected = SelectedAttention(replace(RULE, blocks=20, recalled=5), heads(model))
    tokens = prompt(70)
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
        with attending(model, selected):
            found = model(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(input_ids=tokens, use_cache=False).logits, expected)  # and is as before


@pytest.mark.parametrize("scale", [None, 0.7])
def test_prompts_are_read_whole_and_the_rest_by_blocks(scale):
    """Prompts are as with every block, the tokens behind them as with blocks alone."""
    random = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, h, 70, 16, generator=random).requires_grad_() for h in (4, 2, 2)]
    found = None if scale is None else heads(tiny_model("llama"), scale)
    rule = RULE if scale else replace(RULE, recalled=None)
    selected, whole = SelectedAttention(rule, found), SelectedAttention(replace(rule, blocks=20), found)
    sparse, dense = (each.attend(0, *parts, 0.3) for each in (selected, whole))
    selected.prompt = 45
    mixed = selected.attend(0, *parts, 0.3)
    expected = torch.cat([dense[:, :, :45], sparse[:, :, 45:]], dim=2)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)
    learnt = parts if found is None else [*parts, found[0].weight, found[0].scale]
    upstream = torch.randn(mixed.shape, generator=random)
    pairs = [torch.autograd.grad(out, learnt, upstream) for out in (mixed, expected)]
    torch.testing.assert_close(*pairs, rtol=1e-3, atol=1e-4)


def test_importance_without_a_scale_changes_nothing_but_the_blocks():
    model = tiny_model("llama")
    tokens = prompt(70)
    every = replace(RULE, blocks=20, recalled=5)
    with torch.no_grad():
        with attending(model, SelectedAttention(every, heads(model))):
            biased = model(input_ids=tokens, use_cache=False).logits
        with attending(model, SelectedAttention(replace(every, recalled=None))):
            plain = model(input_ids=tokens, use_cache=False).logits
    assert torch.equal(biased, plain)


@pytest.mark.parametrize("family", ["gemma2", "mistral_sliding", "gpt_oss", "qwen3_next"])
def test_other_attention_is_refused(family):
    model = tiny_model(family)
    selected = SelectedAttention(replace(RULE, recalled=None))
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedModelError, match="selection full"), attending(model, selected):
        model(input_ids=prompt(20), use_cache=False)
    assert model.config._attn_implementation == before


def test_importance_learns_by_the_bias_alone(monkeypatch):
    """Its gradient is that of the loss with the same blocks held fixed, as finite differences find it."""
    model = fresh_model("llama").double()
    found, held, calls = heads(model, 0.7), [], count()

    def first_lists(*arguments, **options):
        layer = next(calls) % len(found)
        if layer == len(held):
            held.append(sequence_lists(*arguments, **options))
        return held[layer]

    monkeypatch.setattr(attention, "sequence_lists", first_lists)
    tokens, weight = prompt(60), found[1].weight

    def loss():
        with attending(model, SelectedAttention(RULE, found)):
            return model(input_ids=tokens, labels=tokens, use_cache=False).loss

    (gradient,) = torch.autograd.grad(loss(), weight)
    with torch.no_grad():
        direction, step = gradient / gradient.norm(), 1e-2
        weight += step * direction
        above = loss()
        weight -= 2 * step * direction
        below = loss()
    torch.testing.assert_close(gradient.norm(), ((above - below) / (2 * step)).float(), rtol=0.01, atol=0)


@pytest.mark.parametrize("selection", ["full", INFLLM, NOSA])
def test_a_cut_run_continues_to_the_same_bits(selection, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_SAVE_EVERY", -1.0)
    settings = replace(SETTINGS, selection=selection)

    class CutError(Exception):
        pass

    def cut(line):
        if line["step"] == 3:  # the checkpoint holds two steps
            raise CutError

    whole = train_further(settings, folder, TEXTS, tmp_path / "whole")
    with pytest.raises(CutError):
        train_further(settings, folder, TEXTS, tmp_path / "cut", report=cut)
    continued = train_further(settings, folder, TEXTS, tmp_path / "cut")
    assert (whole / "model.safetensors").read_bytes() == (continued / "model.safetensors").read_bytes()
    assert (whole / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()
    if selection == NOSA:
        (first,), (second,) = (list(path.glob("importance-*.safetensors")) for path in (whole, continued))
        assert first.read_bytes() == second.read_bytes()


def test_the_head_alone(folder, tmp_path):
    settings = replace(SETTINGS, weights=False)
    made = train_further(settings, folder, TEXTS, tmp_path)
    assert (made / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    manifest = json.loads((made / "importance.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(made)
    assert manifest["model"] == fingerprint(model)
    assert manifest["rule"] == {"block": 8, "stride": 4, "init": 1, "local": 1, "blocks": 5, "recalled": 2}


def test_decoding_adds_the_importance_that_was_trained(folder, tmp_path):
    made = train_further(replace(SETTINGS, head_lr=0.5), folder, TEXTS, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(made)
    held = read_heads(made, ModelInfo.of(2))
    trained = heads(model)
    for module, head in zip(trained, held, strict=True):
        module.weight.data, module.scale.data = head.weight, head.scale
    tokens = prompt(70)
    every = replace(RULE, blocks=20, recalled=5)
    with torch.no_grad():
        plain = model(input_ids=tokens, use_cache=False).logits[0, -1]
        with attending(model, SelectedAttention(every, trained)):
            expected = model(input_ids=tokens, use_cache=False).logits[0, -1]
        with keyhole.attach(model, NOSA.replace("budget=24", f"budget=400, head='{made}'")):
            cache = model(input_ids=tokens[:, :-1]).past_key_values
            found = model(input_ids=tokens[:, -1:], past_key_values=cache).logits[0, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 0.01


def test_the_loss_falls(folder, tmp_path):
    lines = []
    settings = replace(SETTINGS, steps=12, lr=1e-2)
    train_further(settings, folder, TEXTS, tmp_path, report=lines.append)
    losses = [line["loss"] for line in lines]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_rows_of_text_ask_for_what_fits(monkeypatch):
    monkeypatch.setattr(data, "_MOST_LOGITS", 7 * len(byte_tokenizer()))
    row = Texts(byte_tokenizer(), TEXTS, 64, halved=False).row(np.random.default_rng(0), 64)
    assert row.tokens.shape == row.asked.shape == (1, 64)
    assert int((row.asked > 0).sum()) == 7
    assert row.asked[0, 0] == 0


def test_the_first_half_of_a_row_of_text_is_a_prompt():
    row = Texts(byte_tokenizer(), TEXTS, 64, halved=True).row(np.random.default_rng(0), 64)
    assert (row.asked[0] > 0).tolist() == [False] * 32 + [True] * 32


@pytest.mark.parametrize(("sparse_prompts", "prompt"), [(False, 24), (True, 0)])
def test_what_is_asked_first_ends_the_prompt(sparse_prompts, prompt, folder, tmp_path, monkeypatch):
    prompts, attend = [], SelectedAttention.attend

    def noted(self, *arguments):
        prompts.append(self.prompt)
        return attend(self, *arguments)

    monkeypatch.setattr(SelectedAttention, "attend", noted)
    settings = replace(SETTINGS, steps=1, contexts=(48,), sparse_prompts=sparse_prompts)
    train_further(settings, folder, TEXTS, tmp_path)
    assert set(prompts) == {prompt}


def test_too_little_text_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="smaller --context"):
        train_further(SETTINGS, folder, ["short"], tmp_path)


def test_rows_beyond_the_models_positions_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="1024 positions"):
        train_further(replace(SETTINGS, contexts=(1025,)), folder, TEXTS, tmp_path)


def test_tasks_need_their_tokenizer(folder, tmp_path):
    with pytest.raises(ValueError, match="--text"):
        train_further(replace(SETTINGS, tasks=True), folder, [], tmp_path)
