import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from keyhole.cli import inputs
from keyhole.cli.inputs import load, read_text, training_context
from tests.evaluation.small_text import own_byte_model


@pytest.fixture
def broken(model_folder, tmp_path):
    """A copy of a model folder, to be broken."""
    return shutil.copytree(model_folder, tmp_path / "broken")


def test_loads_a_folder(model_folder):
    loaded = load(str(model_folder))
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert loaded.tokenizer("a").input_ids


def test_no_such_folder():
    with pytest.raises(ValueError, match="no model directory or file"):
        load("./nowhere")


def test_a_directory_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"cannot load the model .*neither config\.json nor a GGUF"):
        load(str(tmp_path))


def test_a_file_is_no_model(broken):
    with pytest.raises(ValueError, match="is a file"):
        load(str(broken / "config.json"))


def test_nothing_shipped(monkeypatch, tmp_path):
    monkeypatch.setattr(inputs, "SHIPPED", tmp_path / "none")
    with pytest.raises(ValueError, match="--model"):
        load(None)


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


def cut_config(folder):
    (folder / "config.json").write_text('{"model_type": "lla')


def unknown_kind(folder):
    (folder / "config.json").write_text('{"model_type": "nosuch"}')


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def cut_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def lost_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def other_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))


def no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    "damage",
    [empty, cut_config, unknown_kind, no_weights, cut_weights, lost_tensor, other_shape, no_tokenizer],
)
def test_a_corrupt_folder_is_named(broken, damage):
    damage(broken)
    with pytest.raises(ValueError, match="cannot load the model") as told:
        load(str(broken))
    assert str(broken) in str(told.value)


def test_text_is_read(tmp_path):
    path = tmp_path / "text"
    path.write_text("sea é")
    assert read_text(str(path)) == "sea é"


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "is empty"), (b" \n", "is empty"), (b"a\0b", "is binary"), (b"\xff\xfe", "not UTF-8")],
)
def test_what_is_no_text(tmp_path, data, said):
    path = tmp_path / "text"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=said):
        read_text(str(path))


def test_unreadable_files(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="cannot read"):
            read_text(str(path))


def test_the_context_a_model_was_trained_at():
    model = own_byte_model(max_position_embeddings=1024)
    assert training_context(model) == 1024 - 128
    model.config.max_position_embeddings = 100_000
    assert training_context(model) == 4096
    model.config.keyhole = {"training_context": 777}
    assert training_context(model) == 777


def test_home_is_expanded(monkeypatch, tmp_path, model_folder):
    (tmp_path / "text").write_text("sea")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_text("~/text") == "sea"
    shutil.copytree(model_folder, tmp_path / "model")
    assert load("~/model").model.config.hidden_size == 48
    with pytest.raises(ValueError, match=str(tmp_path / "none")):
        read_text("~/none")


def gguf(path, data=b"GGUF"):
    path.write_bytes(data)
    return path


def test_a_gguf_file_needs_its_package(monkeypatch, tmp_path):
    monkeypatch.setattr("keyhole.core.model_files.find_spec", lambda _: None)
    for name in (gguf(tmp_path / "a.gguf"), tmp_path):
        with pytest.raises(ValueError, match=r"a\.gguf' is a GGUF file, .* pip install 'keyhole\[gguf\]'"):
            load(str(name))


def test_a_converted_model_that_cannot_be_kept_is_said_on_stderr(monkeypatch, tmp_path, capsys):
    pytest.importorskip("gguf")
    from tests.generation.small_gguf import write_gguf

    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("KEYHOLE_HOME", str(tmp_path / "home"))
    load(str(write_gguf(tmp_path / "tiny.gguf")))
    assert "warning: the converted model could not be kept" in capsys.readouterr().err


def test_gguf_files_that_cannot_be_read(tmp_path):
    pytest.importorskip("gguf")
    with pytest.raises(ValueError, match="is not a GGUF file"):
        load(str(gguf(tmp_path / "a.gguf", b"PK")))
    with pytest.raises(ValueError, match=r"cannot load the model .*b\.gguf"):
        load(str(gguf(tmp_path / "b.gguf", b"GGUF" + bytes(100))))
    with pytest.raises(ValueError, match=r"several GGUF files \(a\.gguf, b\.gguf\)"):
        load(str(tmp_path))
    with pytest.raises(ValueError, match=r"no model directory or file .*none\.gguf"):
        load(str(tmp_path / "none.gguf"))
