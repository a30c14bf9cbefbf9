import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

import keyhole as library
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
    found = library.generate(
        byte_model(),
        byte_tokenizer(),
        context=prompt_file.read_text(),
        questions=question,
        method=method,
        question_aware=True,
        max_new_tokens=6,
    )
    return found.text


def test_only_the_text_goes_to_stdout(arguments, prompt_file):
    command = [sys.executable, "-c", "from keyhole.cli import main; main()", *map(str, arguments())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == answer(prompt_file, "The sea is", METHOD) + "\n"
    for word in (METHOD, "tokens (", "(estimated)", "on device", "on disk", "prompt", "ms per token"):
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


def test_text_in_place_of_a_file(keyhole, arguments, prompt_file):
    asked = arguments()
    at = asked.index("--prompt-file")
    asked[at : at + 2] = ["--prompt", prompt_file.read_text()]
    assert keyhole(*asked, "--quiet").stdout == keyhole(*arguments(), "--quiet").stdout


def test_one_text_is_wanted(refused, arguments):
    assert "--prompt TEXT and --prompt-file FILE" in refused(*arguments(), "--prompt", "a")
    assert "--prompt TEXT and --prompt-file FILE" in refused("generate")
    assert "--prompt is empty" in refused("generate", "--prompt", " ")


def test_home_is_expanded(keyhole, arguments, prompt_file, monkeypatch):
    monkeypatch.setenv("HOME", str(prompt_file.parent))
    result = keyhole(*arguments(**{"--prompt-file": f"~/{prompt_file.name}"}), "--quiet")
    assert result.stdout == keyhole(*arguments(), "--quiet").stdout


def test_stop_strings_end_the_answer(keyhole, arguments):
    free = keyhole(*arguments(), "--quiet").stdout
    stopped = keyhole(*arguments(), "--quiet", "--stop", free[2], "--stop", free[3])
    assert stopped.stdout == free[: min(free.index(free[2]), free.index(free[3]))] + "\n"


def test_texts_beyond_the_range(keyhole, refused, arguments, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "short")
    config = folder / "config.json"
    config.write_text(config.read_text().replace("1024", "128"))
    changes = {"--model": folder, "--method": "quest"}
    assert "--beyond-range" in refused(*arguments(**changes))
    result = keyhole(*arguments(**changes), "--beyond-range")
    assert result.exit_code == 0
    said = " ".join(result.stderr.split())
    assert "longer than the model's range; read by quest(budget=32" in said
    assert "Measured up to 1.5 times a range only" in said
    assert keyhole(*arguments(**changes), "--beyond-range", "--quiet").stderr == ""
    within = keyhole(*arguments(), "--beyond-range")
    assert "longer than" not in within.stderr
    assert within.stdout == keyhole(*arguments()).stdout


def test_raw_leaves_the_chat_template_out(keyhole, arguments, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "chat")
    (folder / "chat_template.jinja").write_text("[{{ messages[0].content }}] I say:")
    chat, raw, plain = (
        keyhole(*arguments(**{"--model": model}), "--quiet", *options).stdout
        for model, options in ((folder, ()), (folder, ("--raw",)), (model_folder, ()))
    )
    assert raw == plain != chat


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--method": "pqcach"}, "did you mean 'pqcache'"),
        ({"--method": "oracle(budget=2.0)"}, "2.0"),
        ({"--method": "windowkv(budget=0.5) + snapkv"}, "both answer the question"),
        ({"--max-new-tokens": 0}, "--max-new-tokens"),
        ({"--max-new-tokens": 1000}, "the model's range of 1,024 positions; shorten"),
        ({"--prompt-file": "/nowhere/text"}, "/nowhere/text"),
        ({"--model": "/nowhere/model"}, "/nowhere/model"),
    ],
)
def test_bad_input(refused, arguments, changes, said):
    assert said in " ".join(refused(*arguments(**changes)).split())


LONG = "1" * 310


# Before torch is imported, so that nobody waits for a typing error.
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--method": "pqcach"}, "did you mean 'pqcache'"),
        ({"--method": "pqcache(bit=3)"}, "did you mean 'bits'"),
        ({"--method": "pqcache(bits=99)"}, "1 to 8"),
        ({"--method": "pqcache(rotate=2)"}, "true or false"),
        ({"--method": "quest(place=disk, eviction=lru)"}, "block_eviction"),
        ({"--method": "quest + quest("}, "cannot read the method"),
        ({"--method": f"oracle(budget={LONG})"}, "out of range"),
        ({"--method": f"quest(page={LONG})"}, "out of range"),
        ({"--method": f"sale(tau={LONG})"}, "out of range"),
        ({"--temperature": "inf"}, "inf is not in the range"),
        ({"--temperature": "nan"}, "nan is not in the range"),
        ({"--temperature": "-1"}, "-1 is not in the range"),
        ({"--temperature": LONG}, "is not in the range"),
        ({"--top-p": 0}, "0 is not in the range"),
        ({"--top-p": "nan"}, "nan is not in the range"),
        ({"--seed": LONG}, "--seed"),
        ({"--max-new-tokens": LONG}, "--max-new-tokens"),
        ({"--chunk": LONG}, "--chunk"),
        ({"--threads": 99999999999}, "--threads"),
        ({"--model": "/nowhere/model"}, "/nowhere/model"),
        ({"--model": "weights.gguf"}, "weights.gguf"),
        ({"--prompt-file": "/nowhere/text"}, "/nowhere/text"),
    ],
)
def test_told_at_once(refused, arguments, monkeypatch, changes, said):
    monkeypatch.setattr("keyhole.cli.generate.load", None)
    monkeypatch.setattr("keyhole.generation.generate", None)
    told = " ".join(refused(*arguments(**changes)).replace("│", " ").split())
    assert said in told


def test_nothing_heavy_is_imported_for_a_bad_method():
    code = (
        "import sys; from typer.testing import CliRunner; from keyhole.cli import app\n"
        "for command in (['generate', '--prompt', 'a', '--method'], ['compare', '--methods']):\n"
        "    assert CliRunner().invoke(app, [*command, 'pqcache(bits=99)']).exit_code == 2\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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
