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
from keyhole.engines.transformers.cache import end_prompt
from keyhole.methods import METHODS, RetrievalMethod
from tests.engines.transformers.running import given
from tests.tiny import fresh_model

_BURNERS = 2
_ROOT = Path(__file__).parents[3]
_CHILD = """
import json, sys
from tests.engines.transformers.test_nothing_timed import generated

found = generated()
loaded = [name for name in sys.modules if name.startswith(("keyhole.tuning", "keyhole.bench"))]
print(json.dumps([found, loaded]))
"""


def generated():
    """Tokens drawn after a short prompt and a long one, with what was held and read.

    Heads are many and wide, so that selecting pays at the longer of them.
    """
    torch.set_num_threads(1)
    heads = {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 256}
    model = fresh_model("llama", hidden_size=64, max_position_embeddings=2048, **heads)
    found = []
    for tokens in (90, 900):
        ids = torch.randint(3, 60, (1, tokens), generator=torch.Generator().manual_seed(0))
        with keyhole.attach(model, "quest(budget=0.05)") as attached:
            torch.manual_seed(0)
            out = model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=True)
        found.append([out[0, tokens:].tolist(), attached.usage.tokens, attached.usage.read])
    return found


def beside_a_busy_loop(home):
    """The same in a process of its own whose home is an empty folder, and what it has loaded."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KEYHOLE_", "XDG_"))}
    own = {"HOME": str(home), "USERPROFILE": str(home), "OMP_NUM_THREADS": "1"}
    own |= {"KEYHOLE_COSTS": "", "PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path])}
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(_BURNERS)]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD], capture_output=True, text=True, env=kept | own, check=False
        )
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_same_seed_same_text_beside_a_busy_loop(tmp_path, monkeypatch):
    monkeypatch.delenv("KEYHOLE_COSTS")
    monkeypatch.setenv("KEYHOLE_HOME", str(tmp_path / "none"))
    alone = generated()
    (_, tokens, read), (_, more, some) = alone
    assert tokens == read
    assert some < 0.2 * more
    (tmp_path / "home").mkdir()
    beside, loaded = beside_a_busy_loop(tmp_path / "home")
    assert beside == alone
    assert loaded == []
    assert list((tmp_path / "home").iterdir()) == []


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
        cache = keyhole.KeyholeCache(model, name)
        model(ids, **given(cache))
        end_prompt(cache)
        model(ids[:, :1], **given(cache))
    assert attached.usage.steps > 0
