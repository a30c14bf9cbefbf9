from keyhole.methods import Recipe


def test_prints_the_method(keyhole, model_folder, prompt_file):
    result = keyhole(
        "calibrate", "delta", "--model", model_folder, "--text", prompt_file, "--text", prompt_file
    )
    assert result.exit_code == 0, result.output
    assert Recipe.parse(result.stdout.strip()).stages[0].full == (0,)
    assert "everything" in result.stderr


def test_quiet_prints_nothing_else(keyhole, model_folder, prompt_file):
    asked = ("--model", model_folder, "--text", prompt_file, "--context", 200, "--quiet")
    result = keyhole("calibrate", "delta", *asked)
    assert (result.stdout, result.stderr) == ("delta(full=(0,), leaders=())\n", "")


def test_refuses_a_text_that_is_too_short(refused, model_folder, prompt_file):
    asked = ("--model", model_folder, "--text", prompt_file, "--context", 100)
    assert "at least 144 tokens" in refused("calibrate", "delta", *asked)


def test_refuses_a_missing_text(refused, model_folder, tmp_path):
    said = refused("calibrate", "delta", "--model", model_folder, "--text", tmp_path / "none.txt")
    assert "none.txt" in said
