"""Files of random weights: gguf's own reader finds what was meant, and models come from them."""

import numpy as np
import pytest

from keyhole.bench.against.file_facts import file_facts
from keyhole.bench.against.random_blocks import random_weights
from keyhole.bench.against.shape_file import FILE_TYPES, write_shape
from keyhole.bench.shapes import Shape

gguf = pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")

SHAPES = {
    "llama": Shape("llama", 64, 96, 2, 4, 2, 16, 600, tied=True),
    "qwen2": Shape("qwen2", 64, 96, 2, 4, 2, 16, 600, tied=False),
    "qwen3": Shape("qwen3", 64, 96, 2, 4, 2, 128, 600, tied=False),
}


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_weights_are_centred_with_the_usual_deviation(kind):
    drawn = random_weights(kind, 1 << 15, np.random.default_rng(0))
    kinds = gguf.GGMLQuantizationType
    weights = gguf.quants.dequantize(drawn, getattr(kinds, kind.upper()))
    assert weights.size == 1 << 15
    assert weights.std() == pytest.approx(0.02, rel=0.03)
    assert abs(weights.mean()) < 5 * 0.02 / 2**7.5
    assert len(np.unique(weights)) >= 15


@pytest.mark.parametrize("family", SHAPES)
def test_transformers_makes_a_model_of_the_file(tmp_path, monkeypatch, family):
    import torch

    from keyhole.generation.loading import load_model

    monkeypatch.setenv("KEYHOLE_HOME", str(tmp_path / "home"))
    path, shape = tmp_path / "m.gguf", SHAPES[family]
    write_shape(shape, "q4_1", path)
    model = load_model(path, dtype=torch.float32).model
    expected = shape.model(torch.float32, 1000)
    assert {name: each.shape for name, each in model.named_parameters()} == {
        name: each.shape for name, each in expected.named_parameters()
    }
    down = model.model.layers[1].mlp.down_proj.weight
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}["blk.1.ffn_down.weight"]
    assert torch.equal(down, torch.from_numpy(gguf.quants.dequantize(reader.data, reader.tensor_type)))


def test_the_same_shape_gives_the_same_file(tmp_path):
    for name in "ab":
        write_shape(SHAPES["llama"], "q8_0", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_facts_are_those_of_the_shape(tmp_path):
    write_shape(SHAPES["llama"], "f16", tmp_path / "m.gguf")
    facts = file_facts(tmp_path / "m.gguf")
    assert facts.positions > 131_072
    assert facts.token_elements == 2 * 2 * 2 * 16
    assert facts.cache_bytes(10, "float32") == 2 * facts.cache_bytes(10, "bf16") == 10 * 2 * 2 * 2 * 16 * 4


def test_what_describes_no_model_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match="does not describe"):
        file_facts(path)
    path.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="does not describe"):
        file_facts(path)


def test_other_types_and_families_are_refused(tmp_path):
    with pytest.raises(ValueError, match="q4_0, q4_1"):
        write_shape(SHAPES["llama"], "q4_k", tmp_path / "m")
    with pytest.raises(ValueError, match="mistral"):
        write_shape(Shape("mistral", 64, 96, 1, 4, 2, 16, 600, tied=True), "q4_0", tmp_path / "m")
    assert not list(tmp_path.iterdir())
