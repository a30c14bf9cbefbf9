"""Codebooks: made for a model by the command, taken by the method, refused for another."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import keyhole as library
from keyhole.core.model_info import ModelInfo
from keyhole.engines.transformers.calibrate.codebooks import fit_codebooks
from keyhole.engines.transformers.fingerprint import fingerprint
from keyhole.methods import A2ATS
from keyhole.selection.quantisers.codefile import read_codebooks, write_codebooks
from tests.engines.transformers.running import answer, assert_same
from tests.tiny import fresh_model, prompt, tiny_model

METHOD = A2ATS(distance=50, window=10)
OPTIONS = ("--codewords", 8, "--distance", 90, "--identifiers", 60, "--iterations", 5, "--threads", 1)


@pytest.fixture
def books(keyhole, model_folder, prompt_file, tmp_path):
    result = keyhole(
        "calibrate",
        "a2ats",
        "--model",
        model_folder,
        "--text",
        prompt_file,
        "--out",
        tmp_path / "b",
        *OPTIONS,
    )
    assert result.exit_code == 0, result.output
    return tmp_path / "b", result


def test_writes_codebooks_and_says_how_to_use_them(books):
    folder, result = books
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    told = json.loads((folder / "codebooks.json").read_text())
    assert sorted(names) == sorted(["codebooks.json", told["file"]])
    assert (told["codewords"], told["distance"]) == (8, 90)
    assert all(0 < error < 1 for error in told["relative_logit_error"].values())
    spec = result.stdout.strip()
    assert str(library.Recipe.parse(spec)) == spec
    held = read_codebooks(folder, ModelInfo.of(2), 90)
    assert all(book.points.shape[2] == 8 for book in held)


def test_a_model_is_served_by_its_codebooks_and_no_other(books, model_folder):
    folder, _ = books
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    ids = prompt(60)
    wanted = answer(model, ids)
    everything = f'a2ats(codebook="{folder}", distance=90, mass=1.0, floor=1000000, sinks=2, window=6)'
    with library.attach(model, everything) as attached:
        assert_same(answer(model, ids), wanted)
    assert attached.layers[0].selector.nbytes < 10_000  # codebooks are the model's, not a request's
    with library.attach(
        model, f'a2ats(codebook="{folder}", distance=90, budget=8, sinks=2, window=6)'
    ) as attached:
        answer(model, ids)
    assert attached.usage.read < attached.usage.tokens
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 1
    with (
        pytest.raises(ValueError, match=r"made for another model.*keyhole calibrate a2ats"),
        library.attach(model, everything),
    ):
        pass


def test_refuses_files_that_do_not_fit(books, tmp_path):
    folder, _ = books
    with pytest.raises(ValueError, match="distance=90, not 7"):
        read_codebooks(folder, ModelInfo.of(1), 7)
    with pytest.raises(ValueError, match=r"layers \[0, 1\]"):
        read_codebooks(folder, ModelInfo.of(9), 90)
    with pytest.raises(ValueError, match="no codebooks in"):
        read_codebooks(tmp_path / "nowhere", ModelInfo.of(1), 90)
    tensors = folder / json.loads((folder / "codebooks.json").read_text())["file"]
    with pytest.raises(ValueError, match="is a file; give the directory"):
        read_codebooks(tensors, ModelInfo.of(1), 90)
    tensors.write_bytes(tensors.read_bytes()[:-50])
    with pytest.raises(ValueError, match="damaged"):
        read_codebooks(folder, ModelInfo.of(1), 90)
    settings = folder / "codebooks.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"format": 1}))
    with pytest.raises(ValueError, match=r"format 1, not 2; calibrate again"):
        read_codebooks(folder, ModelInfo.of(1), 90)
    settings.write_text("{")
    with pytest.raises(ValueError, match=r"codebooks\.json is damaged; calibrate again"):
        read_codebooks(folder, ModelInfo.of(1), 90)


def test_refuses_settings_without_their_tensors(books):
    folder, _ = books
    (folder / json.loads((folder / "codebooks.json").read_text())["file"]).unlink()
    with pytest.raises(ValueError, match=r"codebooks-.*\.safetensors is gone; calibrate again"):
        read_codebooks(folder, ModelInfo.of(1), 90)


def test_a_cache_is_not_loaded_by_other_codebooks(books, model_folder, tmp_path):
    folder, _ = books
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    spec = f'a2ats(codebook="{folder}", distance=90, budget=8, sinks=2, window=6)'
    cache = library.KeyholeCache(model, spec)
    with library.attach(model, spec):
        answer(model, prompt(60), past_key_values=cache)
    cache.save(tmp_path / "cache")
    assert library.KeyholeCache.load(tmp_path / "cache", model).method == cache.method
    held = {place: book for place, book in enumerate(read_codebooks(folder, ModelInfo.of(2), 90))}
    held[1] = held[1].map(lambda tensor: tensor * 1.5)
    write_codebooks(folder, held, model=fingerprint(model), distance=90)
    with pytest.raises(library.SavedStateError, match=r"layer 1.*indexed with a different codebook"):
        library.KeyholeCache.load(tmp_path / "cache", model)


def test_refuses_more_codewords_than_keys(refused, model_folder, prompt_file, tmp_path):
    said = refused(
        "calibrate", "a2ats", "--model", model_folder, "--text", prompt_file, "--out", tmp_path / "b",
        "--codewords", 5000, "--identifiers", 0,
    )  # fmt: skip
    assert "too few for 5000 codewords" in said
    assert not (tmp_path / "b" / "codebooks.json").exists()


def test_the_metric_knows_the_queries_of_the_model():
    """Fitted with the moment of real queries, held-out logits are met better than by chance."""
    model = tiny_model("llama")
    fitted = fit_codebooks(model, [prompt(300), prompt(1)], method=METHOD, codewords=32, iterations=20)
    assert sorted(fitted) == [0, 1]
    for layer in fitted.values():
        metric = layer.book.metric
        assert metric.shape == (1, 2, 16, 16)
        assert not torch.allclose(metric, metric[..., :1, :1] * torch.eye(16))
        assert layer.error < 0.9


def test_layers_are_known_by_their_place():
    """Of a model whose first layer is sliding, the second has a codebook."""
    assert list(
        fit_codebooks(fresh_model("gemma3"), [prompt(80)], method=METHOD, codewords=4, iterations=2)
    ) == [1]
