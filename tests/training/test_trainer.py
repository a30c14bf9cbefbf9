from dataclasses import replace

import numpy as np
import pytest
import torch

from keyhole.evaluation.haystack import Haystack
from keyhole.training import checkpoint
from keyhole.training.checkpoint import Progress
from keyhole.training.config import ModelShape, Stage, TrainConfig
from keyhole.training.forward import answer_logits
from keyhole.training.model import new_model
from keyhole.training.tokenizer import build_tokenizer
from keyhole.training.trainer import train

SHAPE = ModelShape(hidden=32, feedforward=48, layers=1, heads=2, kv_heads=1, head_size=16)
STAGES = (
    Stage("repeat", "repeat", length=24, batch=4, max_steps=20, until=2.0),
    Stage("tasks", "tasks", length=256, batch=2, max_steps=10, lists=0.3, span=512, lr_end=1e-4, until=2.0),
)
CONFIG = TrainConfig(shape=SHAPE, stages=STAGES, log_every=1, warmup_steps=2, threads=1)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(Haystack.from_environment("train").sentences)


@pytest.fixture
def folder(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "run" / "tokenizer")
    return tmp_path / "run"


class CutError(Exception):
    pass


def cut_after(steps, lines):
    def report(line):
        lines.append(line)
        if line["total_steps"] >= steps:
            raise CutError

    return report


def test_thirty_steps_lower_the_loss_and_ship_a_model(folder):
    lines = []
    shipped = train(CONFIG, folder, report=lines.append)
    losses = [line["loss"] for line in lines if line["stage"] == "repeat" and line["loss"] == line["loss"]]
    assert np.mean(losses[-3:]) < losses[0]
    assert {line["stage"] for line in lines} == {"repeat", "tasks"}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in shipped.iterdir()
    }


@pytest.mark.parametrize("cut", [7, 25])
def test_a_cut_run_goes_on_bit_for_bit(cut, tmp_path, tokenizer):
    config = replace(CONFIG, checkpoint_seconds=-1.0)  # after every step
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    for out in (whole, halved):
        tokenizer.save_pretrained(out / "tokenizer")
    train(config, whole)
    with pytest.raises(CutError):
        train(config, halved, report=cut_after(cut, []))
    train(config, halved)
    shipped, continued = (out / "model" / "model.safetensors" for out in (whole, halved))
    assert shipped.read_bytes() == continued.read_bytes()


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path, tokenizer, monkeypatch):
    model = new_model(SHAPE, tokenizer, 0)
    optimizer = torch.optim.AdamW(model.parameters())
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, model, optimizer, Progress(step=1))
    before = path.read_bytes()

    def torn(_tensors, target, **_):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", torn)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, model, optimizer, Progress(step=2))
    assert path.read_bytes() == before
    assert checkpoint.load(path, model, optimizer).step == 1


def test_training_forward_is_the_models_own(tokenizer):
    model = new_model(replace(SHAPE, layers=2, heads=4, kv_heads=2), tokenizer, 1).eval()
    tokens = torch.randint(0, 4096, (3, 41), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(41).expand(3, 41)
    asked = torch.zeros(3, 41, dtype=torch.bool)
    asked[:, [5, 40]] = True
    with torch.inference_mode():
        ours = answer_logits(model, tokens, positions, asked)
        theirs = model(tokens).logits[:, :-1][asked[:, 1:]]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_new_models_leave_the_random_state_alone(tokenizer):
    state = torch.get_rng_state()
    first, second = (new_model(SHAPE, tokenizer, 5) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
