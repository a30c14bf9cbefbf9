"""GGUF files are converted once, whole or not at all, whatever happens to the process or the disk."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("gguf")

from keyhole.generation import gguf as converting
from keyhole.generation import keeping, load_model
from tests.generation.small_gguf import write_gguf


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("KEYHOLE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def dequantised(monkeypatch):
    """The calls of what dequantises, which still does."""
    calls, really = [], converting._dequantised
    monkeypatch.setattr(converting, "_dequantised", lambda *a: calls.append(a) or really(*a))
    return calls


def kept(home):
    return sorted(path.name for path in home.iterdir() if path.is_dir())


def weights(loaded):
    return dict(loaded.model.state_dict())


def test_a_file_is_converted_once(home, file, dequantised):
    first, again = load_model(file), load_model(file)
    assert len(dequantised) == 1
    assert len(kept(home)) == 1
    assert {path.name for path in (home / kept(home)[0]).iterdir()} >= {"config.json", "keyhole.json"}
    torch.testing.assert_close(weights(first), weights(again), rtol=0, atol=0)
    torch.testing.assert_close(
        weights(again), weights(converting._dequantised(file, torch.float32)), rtol=0, atol=0
    )
    assert not again.model.training
    assert again.tokenizer("cab").input_ids == [again.tokenizer.convert_tokens_to_ids(t) for t in ("c", "ab")]
    assert again.model.generation_config.eos_token_id == again.tokenizer.eos_token_id


def test_another_file_or_dtype_is_another_directory(home, file, tmp_path):
    load_model(file)
    assert load_model(file, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    other = write_gguf(tmp_path / "tiny.gguf", seed=1)
    assert not torch.equal(load_model(other).model.lm_head.weight, load_model(file).model.lm_head.weight)
    assert len(kept(home)) == 3


def test_two_at_once_convert_once(home, file, dequantised):
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: converting.converted(file, torch.float32), range(2)))
    assert found == [home / kept(home)[0]] * 2
    assert len(dequantised) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_killed_in_the_middle_leaves_nothing_that_is_used(home, file, monkeypatch):
    child = os.fork()
    if child == 0:
        # Killed between the weights and the list of its directory.
        monkeypatch.setattr(keeping, "sync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        converting.converted(file, torch.float32)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert all(name.startswith(".") for name in kept(home))
    assert kept(home)
    load_model(file)
    assert [name.startswith(".") for name in kept(home)] == [False]


@pytest.fixture(params=["no room", "full", "no directory"])
def obstacle(request, monkeypatch, home):
    """What keeps a converted model from being kept."""

    def fill(_model, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"some")
        raise OSError(28, "No space left on device")

    if request.param == "no room":
        usage = type("Usage", (), {"free": 10_000})
        monkeypatch.setattr(keeping.shutil, "disk_usage", lambda _: usage)
    elif request.param == "full":
        monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", fill)
    else:
        home.parent.write_text("a file")


@pytest.mark.usefixtures("obstacle")
def test_where_nothing_can_be_kept_the_model_is_used_with_a_warning(home, file):
    with pytest.warns(keeping.ModelNotKept, match=r"could not be kept .*KEYHOLE_HOME"):
        loaded = load_model(file)
    assert loaded.tokenizer("ab").input_ids
    assert not home.is_dir() or not kept(home)


def test_a_damaged_directory_is_named_with_the_way_out(home, file):
    load_model(file)
    (home / kept(home)[0] / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"tiny\.gguf.*delete the directory .*tiny-.*converted again"):
        load_model(file)
