"""Forms of weights by name or option: from directories and GGUF files, packed once, kept, or refused."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("gguf")

from gguf import GGMLQuantizationType, GGUFReader, dequantize

from keyhole.engines.transformers.packed import PackedEmbedding, PackedLinear, is_packed, summary
from keyhole.generation import load_model, packing
from keyhole.generation.packing import packing_seconds
from keyhole.models import default_model
from tests.generation.small_gguf import write_gguf

Q = GGMLQuantizationType


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("KEYHOLE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


def logits(loaded):
    ids = torch.tensor([[3, 50, 7, 90, 11, 120, 8, 9, 10, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74]])
    with torch.no_grad():
        return loaded.model(ids).logits  # 20 rows: computed by torch with the numbers


@pytest.mark.parametrize("kind", [Q.Q8_0, Q.Q4_0, Q.Q4_1])
def test_blocks_of_a_gguf_file_are_kept(tmp_path, kind):
    file = write_gguf(tmp_path / "tiny.gguf", kinds={"": kind, "token_embd": Q.Q8_0})
    kept, dequantised = load_model(file, weights="as-is"), load_model(file)
    assert packing_seconds(kept.model) is not None
    linear = kept.model.model.layers[0].mlp.up_proj
    assert isinstance(linear, PackedLinear)
    read = {t.name: t for t in GGUFReader(file).tensors}
    up = read["blk.0.ffn_up.weight"]
    assert np.array_equal(linear.weight.numpy(), dequantize(up.data, up.tensor_type))
    # Rows of queries and keys are in another order in the file.
    for name in ("q_proj", "k_proj", "o_proj"):
        ours = getattr(kept.model.model.layers[0].self_attn, name).weight
        assert torch.equal(ours, getattr(dequantised.model.model.layers[0].self_attn, name).weight)
    assert isinstance(kept.model.get_input_embeddings(), PackedEmbedding)
    torch.testing.assert_close(logits(kept), logits(dequantised), rtol=1e-4, atol=1e-4)
    assert kept.tokenizer("cab").input_ids == dequantised.tokenizer("cab").input_ids
    assert kept.model.generation_config.eos_token_id == kept.tokenizer.eos_token_id


def test_a_file_is_packed_once(home, tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "tiny.gguf", kinds={"": Q.Q4_1})
    first = load_model(f"{file}@as-is")
    monkeypatch.setattr(packing, "_make", None)
    again = load_model(f"{file}@as-is")
    assert packing_seconds(first.model) is not None
    assert packing_seconds(again.model) is None
    assert torch.equal(logits(first), logits(again))
    assert len([folder for folder in home.iterdir() if folder.is_dir()]) == 1
    (folder,) = (folder for folder in home.iterdir() if folder.is_dir())
    assert torch.equal(logits(load_model(folder)), logits(first))
    with pytest.raises(ValueError, match="packed already, so they cannot become int4"):
        load_model(folder, weights="int4")
    (folder / "packed.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"delete the directory .*and it is converted again"):
        load_model(file, weights="as-is")


def test_another_file_of_the_same_name_is_packed_again(tmp_path):
    first = logits(load_model(write_gguf(tmp_path / "tiny.gguf"), weights="int8"))
    other = logits(load_model(write_gguf(tmp_path / "tiny.gguf", seed=1), weights="int8"))
    assert not torch.equal(first, other)


def test_what_no_packing_has_is_dequantised(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", kinds={"": Q.Q5_0, "ffn": Q.Q4_0})
    loaded = load_model(file, weights="as-is")
    layer = loaded.model.model.layers[0]
    assert is_packed(layer.mlp)
    assert not is_packed(layer.self_attn)
    assert not is_packed(loaded.model.get_output_embeddings())
    torch.testing.assert_close(logits(loaded), logits(load_model(file)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_blocks_of_the_wanted_form_stay_and_others_are_quantised(tmp_path, form):
    kinds = {"": Q.F32, "ffn": Q.Q8_0 if form == "int8" else Q.Q4_0}
    file = write_gguf(tmp_path / "tiny.gguf", kinds=kinds)
    loaded, exact = load_model(file, weights=form), load_model(file)
    names = summary(loaded.model).modules
    assert sum(names.values()) == 9
    ours, theirs = loaded.model.model.layers[0], exact.model.model.layers[0]
    assert torch.equal(ours.mlp.down_proj.weight, theirs.mlp.down_proj.weight)
    near, far = ours.self_attn.q_proj.weight, theirs.self_attn.q_proj.weight.detach()
    error = float((near - far).norm() / far.norm())
    assert 0 < error < (0.01 if form == "int8" else 0.1)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_directory_is_packed_and_kept(home, form):
    name = f"{default_model()}@{form}"
    first, again = load_model(name), load_model(name)
    assert packing_seconds(again.model) is None
    assert torch.equal(logits(first), logits(again))
    whole = logits(load_model(default_model()))
    assert float((logits(first) - whole).norm() / whole.norm()) < (0.05 if form == "int8" else 0.5)
    assert len(list(home.glob(f"*{form}*v2"))) == 1


def test_quantised_models_are_served_as_they_are_and_not_packed(tmp_path):
    load_model(default_model()).model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "torchao"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"quantised already \(torchao\), so they cannot become int4"):
        load_model(tmp_path, weights="int4")


def test_packed_weights_are_for_cpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="code for CPUs, and this process has a GPU"):
        load_model(default_model(), weights="int8")


def test_forms_that_are_none_are_refused():
    with pytest.raises(ValueError, match="weights 'int5' are not one of int8, int4, as-is"):
        load_model(default_model(), weights="int5")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "packed.safetensors"])
@pytest.mark.parametrize("data", [b"", b"{nothing"])
def test_what_was_kept_and_is_damaged_is_named(home, file, data):
    load_model(default_model(), weights="int8")
    (folder,) = (each for each in home.iterdir() if each.is_dir())
    (folder / file).write_bytes(data)
    with pytest.raises(ValueError, match=r"delete the directory .*int8.*converted again"):
        load_model(default_model(), weights="int8")
