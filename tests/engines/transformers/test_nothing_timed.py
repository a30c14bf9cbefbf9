"""What is generated depends on no clock: nothing measured, no file, the same text beside a busy machine."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import keyhole
from keyhole.methods import METHODS, RetrievalMethod
from tests.tiny import fresh_model

_BURNERS = 4
_ROOT = Path(__file__).parents[3]
# Wide heads, for which selecting pays at lengths of a test: one prompt is read whole, the other is not.
_GENERATE = """
import json, sys, torch
import keyhole
from tests.tiny import fresh_model

torch.set_num_threads(1)
wide = dict(num_attention_heads=8, num_key_value_heads=8, head_dim=256, max_position_embeddings=8192)
model = fresh_model("llama", **wide)
found = []
for tokens in (100, 3000):
    ids = torch.randint(3, 60, (1, tokens), generator=torch.Generator().manual_seed(0))
    with keyhole.attach(model, "quest(budget=0.05)") as attached:
        torch.manual_seed(0)
        out = model.generate(ids, max_new_tokens=4, do_sample=True, eos_token_id=None)
    found.append([out[0, tokens:].tolist(), attached.usage.tokens, attached.usage.read])
loaded = [name for name in sys.modules if name.startswith(("keyhole.tuning", "keyhole.bench"))]
print(json.dumps([found, loaded]))
"""


def generated(home):
    """What another process generates whose home is an empty folder; it is empty afterwards."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KEYHOLE_", "XDG_"))}
    own = {"HOME": str(home), "USERPROFILE": str(home), "OMP_NUM_THREADS": "1"}
    own["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *sys.path])
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", _GENERATE], capture_output=True, text=True, env=kept | own, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(home.iterdir()) == []
    return json.loads(done.stdout.splitlines()[-1])


def test_same_seed_same_text_beside_a_busy_loop(tmp_path):
    alone, loaded = generated(tmp_path / "alone")
    assert loaded == []
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(_BURNERS)]
    try:
        beside, _ = generated(tmp_path / "beside")
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert beside == alone
    (_, tokens, read), (_, more, some) = alone
    assert tokens == read
    assert some < 0.2 * more


@pytest.fixture
def no_clock(monkeypatch):
    def refuse(*_):
        raise AssertionError("something is timed")

    for clock in ("perf_counter", "perf_counter_ns", "process_time", "thread_time", "monotonic"):
        monkeypatch.setattr(time, clock, refuse)


@pytest.mark.parametrize("name", [n for n, kind in METHODS.items() if issubclass(kind, RetrievalMethod)])
@pytest.mark.usefixtures("no_clock")
def test_no_clock_is_looked_at(name, monkeypatch):
    monkeypatch.setenv("KEYHOLE_COSTS", "shipped")
    model = fresh_model("llama")
    ids = torch.randint(3, 60, (1, 40), generator=torch.Generator().manual_seed(0))
    with keyhole.attach(model, name) as attached, torch.no_grad():
        first = model(ids).past_key_values
        model(ids[:, :1], past_key_values=first)
    assert attached.usage.steps > 0
