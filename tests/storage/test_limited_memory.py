"""A context larger than memory is served from disk, with the same tokens; memory stays bounded meanwhile."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.storage import limited
from tests.tiny import fresh_model

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and counts of Linux")

SPARE = 18_000_000


def run(*arguments):
    command = [sys.executable, "-m", "tests.storage.limited", *map(str, arguments)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout)


def test_a_context_larger_than_memory():
    assert limited.KV_BYTES > 1.3 * SPARE
    wanted, held = limited.tokens_of(fresh_model("llama", **limited.WIDE), "device")
    assert held.device > limited.KV_BYTES
    found = run("serve", "disk", SPARE)
    assert found["tokens"] == wanted
    assert found["held"]["disk"] >= limited.KV_BYTES
    assert "memory" in run("serve", "device", SPARE)["error"], "the limit is none"


def test_memory_stays_bounded():
    found = run("watch")
    assert found["disk"] >= 256 << 20
    assert found["memory"] < 160 << 20
