from keyhole.training import trainer


def recorded(monkeypatch):
    calls = []

    def train(config, out, *, report):
        calls.append(config)
        report({"stage": config.stages[0].name, "step": 1, "accuracy": 0.5})
        (out / "checkpoint.safetensors").touch()
        return out / "model"

    monkeypatch.setattr(trainer, "train", train)
    return calls


def test_trains_then_resumes(keyhole, monkeypatch, tmp_path):
    calls, out = recorded(monkeypatch), tmp_path / "run"
    result = keyhole("train", "--out", out, "--seed", 3, "--quick", "--threads", 1)
    assert (result.exit_code, result.stdout.strip()) == (0, str(out / "model"))
    assert (calls[0].seed, calls[0].threads) == (3, 1)
    assert {stage.max_steps for stage in calls[0].stages} == {3}
    assert keyhole("train", "--out", out, "--resume").exit_code == 0
    assert max(stage.max_steps for stage in calls[1].stages) > 3


def test_a_run_is_not_overwritten(keyhole, refused, monkeypatch, tmp_path):
    recorded(monkeypatch)
    keyhole("train", "--out", tmp_path)
    assert "--resume" in refused("train", "--out", tmp_path)


def test_nothing_to_resume(refused, monkeypatch, tmp_path):
    recorded(monkeypatch)
    assert "leave out --resume" in refused("train", "--out", tmp_path / "none", "--resume")


def test_the_folder_is_a_file(refused, tmp_path):
    (tmp_path / "file").touch()
    assert "not a folder" in refused("train", "--out", tmp_path / "file")
