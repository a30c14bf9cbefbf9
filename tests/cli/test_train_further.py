"""`keyhole train --selection`: what is refused before torch, and what reaches training."""

import sys

import pytest

from keyhole.training.continued import start

NOSA = "nosa(block=16, stride=2, sinks=16, window=64, budget=336)"


@pytest.fixture
def calls(monkeypatch):
    found = []

    def train_further(settings, source, texts, out, *, report):
        found.append((settings, source, texts))
        report({"step": 1, "loss": 0.5, "accuracy": 0.5})
        settings.write(out)
        (out / "checkpoint.safetensors").touch()
        return out / "model"

    monkeypatch.setattr(start, "train_further", train_further)
    return found


def test_defaults_train_the_embedded_model_on_its_tasks(keyhole, calls, tmp_path):
    result = keyhole("train", "--selection", NOSA, "--out", tmp_path, "--threads", 1)
    assert (result.exit_code, result.stdout.strip()) == (0, str(tmp_path / "model"))
    settings, _, texts = calls[0]
    assert (settings.selection, settings.source, settings.tasks, texts) == (NOSA, None, True, [])
    assert (settings.steps, settings.contexts, settings.batch, settings.weights) == (300, (4096,), 1, True)


def test_another_model_is_trained_on_text(keyhole, calls, tmp_path, model_folder, prompt_file):
    given = ("train", "--selection", "infllm_v2", "--from", model_folder, "--out", tmp_path / "run")
    assert keyhole(*given, "--text", prompt_file, "--context", 32, "--context", 64).exit_code == 0
    assert keyhole(*given[:-1], tmp_path / "two").exit_code == 0
    (first, source, texts), (second, _, shipped) = calls
    assert (first.contexts, source, len(texts)) == ((32, 64), str(model_folder), 1)
    assert not first.tasks
    assert not second.tasks
    assert len(shipped) > 1


def test_a_run_is_resumed_with_the_same_options(keyhole, refused, calls, tmp_path):
    given = ("train", "--selection", NOSA, "--out", tmp_path)
    assert keyhole(*given).exit_code == 0
    assert "--resume" in refused(*given)
    assert keyhole(*given, "--resume").exit_code == 0
    assert "lr 0.0001" in refused(*given, "--resume", "--lr", 0.001)
    assert "give its --selection" in refused("train", "--out", tmp_path, "--resume")
    assert len(calls) == 2


def test_a_run_of_another_kind_is_not_resumed(refused, tmp_path):
    (tmp_path / "checkpoint.safetensors").touch()
    said = refused("train", "--selection", "full", "--out", tmp_path, "--resume")
    assert "without --selection" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--selection", "quest"), "full, infllm_v2 or nosa"),
        (("--selection", "full(block=3)"), "full, infllm_v2 or nosa"),
        (("--selection", "nosa + sale"), "full, infllm_v2 or nosa"),
        (("--selection", "nosa(blok=3)"), "did you mean 'block'"),
        (("--selection", "nosa(budget=0.1)"), "give tokens"),
        (("--selection", "nosa(head=dir)"), "head= changes nothing in training"),
        (("--selection", "infllm_v2(place=disk)"), "place= changes nothing in training"),
        (("--selection", "infllm_v2", "--head-only"), "only nosa has"),
        (("--selection", "nosa", "--from", "no/such/dir"), "no model directory"),
        (("--selection", "nosa", "--from", "@int8"), "packed weights are not trained"),
        (("--selection", "nosa", "--text", "missing.txt"), "cannot read"),
        (("--selection", "nosa", "--context", 255), "at least 256"),
        (("--selection", "nosa", "--lr", "0"), "--lr 0"),
        (("--selection", "nosa", "--head-lr", "nan"), "--head-lr nan"),
        (("--head-only",), "--head-only is for training a model further"),
        (("--from", "dir"), "--from is for training a model further"),
        (("--steps", 5), "--steps is for training a model further"),
    ],
)
def test_what_does_not_fit_is_refused(options, message, refused, tmp_path):
    assert message in " ".join(refused("train", "--out", tmp_path, *options).split())


def test_tasks_and_text_are_not_mixed(refused, tmp_path, prompt_file):
    said = refused("train", "--selection", "nosa", "--tasks", "--text", prompt_file, "--out", tmp_path)
    assert "give one of them" in said


def test_refusals_load_no_torch(tmp_path):
    import subprocess

    code = (
        "import sys\nfrom keyhole.cli import app\n"
        f"try:\n  app(['train', '--selection', 'nosa(budget=0.1)', '--out', {str(tmp_path)!r}])\n"
        "except SystemExit as end:\n  assert end.code == 2, end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
