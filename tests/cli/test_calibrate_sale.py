"""Thresholds: found for a model by the command, taken by the method, refused for another model."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import keyhole as library
from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.transformers.calibrate.thresholds import fit_thresholds
from keyhole.kernels import Reach
from tests.tiny import fresh_model, prompt, tiny_model


@pytest.fixture
def made(keyhole, model_folder, prompt_file, tmp_path):
    result = keyhole(
        "calibrate", "sale", "--model", model_folder, "--text", prompt_file, "--out", tmp_path / "t",
        "--error", 0.2, "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return tmp_path / "t", result


def test_writes_thresholds_and_says_how_to_use_them(made):
    folder, result = made
    told = json.loads((folder / "thresholds.json").read_text())
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    assert sorted(names) == sorted(["thresholds.json", told["file"]])
    assert (told["error"], told["kind"], told["layers"]) == (0.2, "layer", [0, 1])
    spec = result.stdout.strip()
    assert str(library.Recipe.parse(spec)) == spec
    assert "heads read everything" in result.stderr


def test_a_model_is_served_by_its_thresholds_and_no_other(made, model_folder):
    spec = made[1].stdout.strip()
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with library.attach(model, spec):
        assert model(prompt(100)).logits.isfinite().all()
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 1
    with (
        pytest.raises(ValueError, match=r"made for another model.*keyhole calibrate sale"),
        library.attach(model, spec),
    ):
        pass


def test_every_head_of_every_layer_has_one():
    model = tiny_model("llama")
    found = fit_thresholds(model, [prompt(300), prompt(1)], reach=Reach(width=1), error=0.1)
    assert sorted(found) == [0, 1]
    assert all(tau.shape == (model.config.num_attention_heads,) for tau in found.values())


def test_refuses_a_kind_of_error_it_does_not_know(refused, model_folder, prompt_file, tmp_path):
    said = refused(
        "calibrate", "sale", "--model", model_folder, "--text", prompt_file, "--out", tmp_path / "t",
        "--kind", "squared",
    )  # fmt: skip
    assert "kind='squared' is not one of layer, relative, absolute" in said
    assert not (tmp_path / "t" / "thresholds.json").exists()


def test_refuses_a_model_whose_prompts_are_always_whole():
    with pytest.raises(UnsupportedModelError, match="soft-capped"):
        fit_thresholds(fresh_model("gemma2"), [prompt(80)], reach=Reach(), error=0.1)


def test_refuses_text_without_two_tokens():
    with pytest.raises(ValueError, match="no prompt has two tokens"):
        fit_thresholds(tiny_model("llama"), [prompt(1)], reach=Reach(), error=0.1)
