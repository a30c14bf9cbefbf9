"""The model in the package, when it has been trained, is a plain Hugging Face folder that answers."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from keyhole.evaluation.tasks import score
from keyhole.training.evaluate import answers, samples

FOLDER = Path(str(files("keyhole"))) / "models" / "default"

pytestmark = pytest.mark.skipif(not (FOLDER / "model.safetensors").exists(), reason="no model is shipped")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_folder_is_small_and_complete():
    names = {path.name for path in FOLDER.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    } <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 16 * 2**20


def test_shape(model):
    config = model.config
    assert config.model_type == "llama"
    assert config.num_attention_heads >= 2 * config.num_key_value_heads
    assert config.head_dim in (32, 64)
    assert config.rope_parameters["rope_theta"] == 500_000
    assert config.tie_word_embeddings
    assert config.max_position_embeddings >= 8192


def test_single_needles_are_found(model, tokenizer):
    asked = samples(tokenizer, "single", 1024, 8)
    replies = answers(model, tokenizer, asked)
    assert sum(map(score, asked, replies)) >= 7


def test_padding_beside_a_longer_prompt_changes_no_answer(model, tokenizer):
    short, long = samples(tokenizer, "multikey", 512, 1)[0], samples(tokenizer, "multiquery", 900, 1)[0]
    assert answers(model, tokenizer, [short, long])[0].startswith(answers(model, tokenizer, [short])[0])


def test_answers_end(model, tokenizer):
    sample = samples(tokenizer, "single", 512, 1)[0]
    inputs = tokenizer(sample.prompt, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    assert out[0, -1] == tokenizer.eos_token_id
