import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

import keyhole as library
from keyhole.cli.inputs import Loaded
from keyhole.cli.prompt import build_prompt
from keyhole.evaluation.prompts import start
from keyhole.generation.decoding import decode, text_of
from keyhole.methods import Recipe
from tests.evaluation.small_text import byte_model, byte_tokenizer

METHOD = "oracle(budget=0.2, sinks=2, window=6)"


@pytest.fixture
def arguments(model_folder, prompt_file):
    asked = {
        "--model": model_folder,
        "--prompt-file": prompt_file,
        "--question": "The sea is",
        "--method": METHOD,
        "--max-new-tokens": 6,
    }
    return lambda **changes: ["generate", *sum((asked | changes).items(), ())]


def answer(prompt_file, question, method):
    """The same by the library."""
    model, tokenizer = byte_model(), byte_tokenizer()
    tokens = build_prompt(Loaded(model, tokenizer), prompt_file.read_text(), question, 6)
    begun = start(model, Recipe.parse(method), tokens)
    text = text_of(tokenizer, list(decode(model, int(tokens[0, -1]), begun.cache, limit=6)))
    library.detach(model)
    return text


def test_only_the_text_goes_to_stdout(arguments, prompt_file):
    command = [sys.executable, "-c", "from keyhole.cli import main; main()", *map(str, arguments())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == answer(prompt_file, "The sea is", METHOD) + "\n"
    for word in (METHOD, "tokens (", "(estimated)", "on device", "on disk", "prompt", "ms each"):
        assert word in done.stderr


def test_quiet_is_quiet(keyhole, arguments):
    result = keyhole(*arguments(), "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")


def test_chunks_do_not_change_the_answer(keyhole, arguments):
    whole, cut = (keyhole(*arguments(**{"--chunk": chunk}), "--quiet") for chunk in (8192, 16))
    assert whole.stdout == cut.stdout


def test_sampling_repeats_by_seed(keyhole, arguments):
    def drawn(seed):
        return keyhole(*arguments(**{"--temperature": 5.0, "--seed": seed}), "--quiet").stdout

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(1, 4)}) > 1


def test_stdin(keyhole, arguments, prompt_file):
    piped = keyhole(*arguments(**{"--prompt-file": "-"}), "--quiet", input=prompt_file.read_text())
    assert piped.stdout == keyhole(*arguments(), "--quiet").stdout


def test_a_chat_model_is_asked_in_its_form():
    tokenizer = byte_tokenizer().__class__(tokenizer_object=byte_tokenizer().backend_tokenizer)
    tokenizer.chat_template = "[{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}] I say:"
    tokens = build_prompt(Loaded(byte_model(), tokenizer), "A text.\n", "What?", 6)
    assert tokenizer.decode(tokens[0]) == "[user: A text.\nWhat?] I say:"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--method": "pqcach"}, "did you mean 'pqcache'"),
        ({"--method": "oracle(budget=2.0)"}, "2.0"),
        ({"--temperature": -1}, "temperature -1"),
        ({"--max-new-tokens": 0}, "--max-new-tokens"),
        ({"--max-new-tokens": 1000}, "the model's range of 1024"),
        ({"--prompt-file": "/nowhere/text"}, "/nowhere/text"),
        ({"--model": "/nowhere/model"}, "/nowhere/model"),
    ],
)
def test_bad_input(refused, arguments, changes, said):
    assert said in " ".join(refused(*arguments(**changes)).split())


def test_a_prompt_of_one_token(refused, arguments, tmp_path):
    path = tmp_path / "one"
    path.write_text("a")
    assert "at least 2" in refused(*arguments(**{"--prompt-file": path, "--question": ""}))


def test_not_a_number_in_the_keys(refused, arguments, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.k_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "NaN" in refused(*arguments(**{"--model": folder}))


@pytest.mark.parametrize(
    ("question", "task"), [("Who was at sea?", "localisation"), ("Summarize it.", "aggregation")]
)
def test_a_method_is_settled_by_the_prompt(keyhole, arguments, question, task):
    method = "windowkv(budget=0.5, task=auto)"
    result = keyhole(*arguments(**{"--question": question, "--method": method}))
    assert result.exit_code == 0
    told = "windowkv(budget=0.5)" if task == "localisation" else "windowkv(budget=0.5, task=aggregation)"
    assert told in result.stderr
