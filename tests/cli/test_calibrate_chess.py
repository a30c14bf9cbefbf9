import json

import pytest

from keyhole.methods import Recipe


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("The river carried the letter past the mill and the old bridge. " * 30)
    return str(file)


def test_what_it_prints_is_a_method_that_works(keyhole, text, tmp_path):
    out = tmp_path / "found"
    made = keyhole(
        "calibrate", "chess", "--text", text, "--out", str(out), "--sparsity", "0.3", "--threads", "1"
    )
    assert made.exit_code == 0, made.output
    spec = made.stdout.strip()
    (method,) = Recipe.parse(spec).stages
    assert (method.sparsity, method.file) == (0.3, str(out))
    assert "of the weights" in made.stderr
    settings = json.loads((out / "activations.json").read_text())
    assert settings["tokens"] > 100
    told = keyhole(
        "generate", "--prompt-file", text, "--method", f"pqcache + {spec}", "--max-new-tokens", "3"
    )
    assert told.exit_code == 0, told.output
    assert "weights read per token" in told.stderr


@pytest.mark.parametrize(
    "options",
    [("--sparsity", "1"), ("--sparsity", "-0.1"), ("--first", "down"), ("--weighting", "rms")],
)
def test_refusals(keyhole, text, tmp_path, options):
    refused = keyhole("calibrate", "chess", "--text", text, "--out", str(tmp_path / "x"), *options)
    assert refused.exit_code == 2
    assert options[1] in refused.stderr
    assert not [*(tmp_path / "x").iterdir()]
