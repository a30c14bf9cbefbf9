"""Steps behind a resident buffer are counted and checked; without a GPU there is nothing to time."""

import pytest

from keyhole.bench.case import Case
from keyhole.bench.checks import CheckFailedError
from keyhole.bench.gpu import offload as bench
from keyhole.storage import PinnedStorage
from keyhole.tuning.synthetic import Synthetic

CASE = Case(600, query_heads=4, kv_heads=2, head_dim=16, read_tokens=40)


def test_what_is_counted():
    found = bench.measure(CASE, steps=6, alike=0.9, cache=0)
    assert 0 < found.hit_rate < 1
    behind = found.link_bytes / (1 - found.hit_rate)
    assert behind <= 40 * CASE.token_bytes, "what lies in the ring is not read over the link"
    assert min(found.fetch_ms, found.step_ms, found.copy_ms, found.bandwidth, found.link_share) > 0
    assert found.device_bytes > 0


def test_queries_that_are_alike_find_more():
    rates = [bench.measure(CASE, steps=12, alike=alike, cache=0).hit_rate for alike in (0.0, 0.9, 1.0)]
    assert rates[0] < rates[1] < rates[2] == 1.0


def test_reads_are_the_best_tokens():
    source = Synthetic(2, 16, seed=0)
    keys, _ = source.keys_values(600)
    read = bench.drifting_reads(CASE, source, keys, 3, 0.5)[-1]
    logits = read.query.view(2, 2, 16) @ keys[0].transpose(1, 2)
    assert read.slots.shape == (1, 2, 40)
    assert read.slots[0, 1].tolist() == sorted(logits.mean(1)[1].argsort(descending=True)[:40].tolist())
    assert read.counts.tolist() == [[40, 40]]


def test_nothing_is_reported_of_what_is_wrong(monkeypatch):
    attend = PinnedStorage.attend
    monkeypatch.setattr(
        PinnedStorage, "attend", lambda *args: attend(*args)._replace(out=attend(*args).out + 1.0)
    )
    with pytest.raises(CheckFailedError):
        bench.measure(CASE, steps=1, alike=0.9, cache=0)
    with pytest.raises(ValueError, match="read_tokens=0"):
        bench.measure(Case(9, read_tokens=0), steps=1, alike=0.9, cache=0)
