"""The engines themselves on one small file: the same model, the same lengths."""

from collections.abc import Iterator

import numpy as np
import pytest

from keyhole.bench.against.engine import Settings
from keyhole.bench.against.engines import entrant
from keyhole.bench.against.huggingface import HuggingFace
from keyhole.bench.against.shape_file import write_shape
from keyhole.bench.shapes import Shape

pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")

IDS = np.random.default_rng(1).integers(0, 600, 70).tolist()


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Iterator[Settings]:
    folder = tmp_path_factory.mktemp("against")
    write_shape(Shape("llama", 64, 96, 2, 4, 2, 32, 600, tied=True), "f32", folder / "m.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEYHOLE_HOME", str(folder))
        yield Settings(folder / "m.gguf", 1)


@pytest.fixture(scope="module")
def expected(settings) -> np.ndarray:
    """The logits behind the prompt and two greedy steps, by transformers."""
    return _after_steps(entrant("transformers(attention=eager)", settings).make())


def test_keyhole_computes_the_same(settings, expected):
    engine = HuggingFace(settings, dtype="float32", method="dense")
    np.testing.assert_allclose(_after_steps(engine), expected, atol=1e-4)
    engine.start(200)
    np.testing.assert_allclose(_after_steps(engine), expected, atol=1e-4)


def test_synthetic_tokens_are_held_and_read(settings):
    engine = HuggingFace(settings, dtype="float32", method="quest(budget=64, dense_below=0)")
    engine.start(0)
    engine.fill(400)
    engine.step()
    assert engine._cache.get_seq_length() == 401
    assert engine._cache.usage.read < engine._cache.usage.tokens / 2
    plain = entrant("transformers", settings).make()
    plain.start(0)
    plain.fill(400)
    assert plain._cache.get_seq_length() == 400


def test_llama_cpp_computes_the_same(settings, expected):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    engine = entrant("llama.cpp(kv=f32, flash=off)", settings).make()
    np.testing.assert_allclose(_after_steps(engine), expected, atol=1e-3)
    assert "llama-cpp-python" in engine.about()


@pytest.mark.parametrize("tokens", [70, 512, 513, 1500])
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_llama_cpp_holds_synthetic_tokens(settings, tokens, kv):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    engine = entrant(f"llama.cpp(kv={kv}, flash=on)", settings).make()
    engine.start(tokens + 2)
    engine.fill(tokens)
    memory = engine._api.llama_get_memory(engine._context)
    assert engine._api.llama_memory_seq_pos_min(memory, 0) == 0
    assert engine._api.llama_memory_seq_pos_max(memory, 0) == tokens - 1
    assert engine._api.llama_memory_seq_pos_max(memory, 1) == -1
    engine.step()
    assert np.isfinite(engine.logits()).all()


def _after_steps(engine) -> np.ndarray:
    engine.start(len(IDS) + 3)
    engine.read(IDS)
    engine.step()
    engine.step()
    return engine.logits()


def test_vllm_holds_what_it_reads(settings):
    pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` has an environment with it")
    engine = entrant("vllm(eager=on)", settings).make()
    for _ in range(2):
        engine.start(200)
        engine.read(IDS)
        engine.step()
        assert engine._engine.has_unfinished_requests()
    with pytest.raises(ValueError, match="--prompt 300"):
        engine.fill(300)
