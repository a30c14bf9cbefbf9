"""A benchmark of something wrong, or too large, reports nothing."""

from dataclasses import replace

import pytest
import torch

from keyhole import kernels
from keyhole.bench.build import build
from keyhole.bench.case import Case
from keyhole.bench.checks import CheckFailedError, check_close
from keyhole.bench.decode import decode
from keyhole.bench.gather import gather
from keyhole.bench.gemv import gemv
from keyhole.bench.paged import paged
from keyhole.bench.scan import scan
from keyhole.bench.step import step
from keyhole.kernels.attention.prepared import PreparedAttention
from keyhole.kernels.pq.step import PreparedScan
from keyhole.tuning import machine
from keyhole.tuning.timing import using_threads

PQ = "pqcache(subspaces=4, bits=4, iterations=1)"


def spoil(monkeypatch, name, change):
    """Let a kernel compute something else, except where the reference is asked for."""
    right = getattr(kernels, name)

    def wrong(*args, **kwargs):
        found = right(*args, **kwargs)
        return found if kwargs.get("impl") == "reference" else change(found)

    monkeypatch.setattr(kernels, name, wrong)


def spoil_prepared(monkeypatch, kind, name, change):
    """As `spoil`, for a native call whose operands are filled in once."""
    right = getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda *args, **kwargs: change(right(*args, **kwargs)))


@pytest.fixture
def wrong_attention(monkeypatch):
    spoil(monkeypatch, "gather_attention", lambda found: found._replace(out=found.out * 1.01))
    spoil_prepared(monkeypatch, PreparedAttention, "attend", lambda found: (found[0] * 1.01, found[1]))


@pytest.mark.usefixtures("wrong_attention")
def test_wrong_attention_is_refused(case, flusher, tiny):
    with pytest.raises(CheckFailedError, match="no time is reported"):
        gather(case, rounds=1, flusher=flusher)
    with pytest.raises(CheckFailedError, match="attention over what was read"):
        decode(case, PQ, rounds=1, flusher=flusher)
    with pytest.raises(CheckFailedError):
        build(replace(case, read_tokens=0), PQ, rounds=1, flusher=flusher)
    with pytest.raises(CheckFailedError):
        step(tiny, [PQ], tokens=300, dtype="float32", read_tokens=50, rounds=1, flusher=flusher)


def test_wrong_attention_over_pages_is_refused(case, flusher, monkeypatch):
    spoil(monkeypatch, "paged_gather_attention", lambda found: found._replace(out=found.out * 1.01))
    spoil_prepared(monkeypatch, PreparedAttention, "attend", lambda found: (found[0] * 1.01, found[1]))
    with pytest.raises(CheckFailedError, match="attention over what was read"):
        paged(case, PQ, block_size=32, rounds=1, flusher=flusher)


@pytest.mark.parametrize("method", ["snapkv", "oracle(kv_dtype=int8)", "oracle(place=host)"])
def test_methods_that_pages_cannot_hold_are_refused(case, flusher, method):
    with pytest.raises(ValueError, match="give a method that selects, with place=device and no kv_dtype"):
        paged(case, method, block_size=32, rounds=1, flusher=flusher)


def test_wrong_log_sum_exp_is_refused(case, flusher, monkeypatch):
    spoil(monkeypatch, "gather_attention", lambda found: found._replace(lse=found.lse + 1))
    with pytest.raises(CheckFailedError, match="log-sum-exp"):
        gather(case, rounds=1, flusher=flusher)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found._replace(slots=torch.arange(100).expand(2, -1).int()),
        lambda found: found._replace(slots=torch.zeros_like(found.slots)),
        lambda found: found._replace(slots=found.slots + 700),
        lambda found: found._replace(counts=found.counts - 5),
    ],
    ids=["not the best", "one slot many times", "outside", "too few"],
)
def test_wrong_choice_is_refused(case, flusher, monkeypatch, change):
    spoil(monkeypatch, "pq_select", change)
    with pytest.raises(CheckFailedError, match="scan picked"):
        scan(case, PQ, rounds=1, flusher=flusher)


def test_a_step_that_reads_a_slot_twice_is_refused(case, flusher, monkeypatch):
    def repeat(found):
        return found._replace(slots=torch.full_like(found.slots, 40))

    spoil(monkeypatch, "pq_select", repeat)
    spoil_prepared(monkeypatch, PreparedScan, "pick", repeat)
    with pytest.raises(CheckFailedError, match="twice"):
        decode(case, PQ, rounds=1, flusher=flusher)


@pytest.mark.parametrize("name", ["matvec_skip_rows", "matvec_skip_columns"])
def test_wrong_product_is_refused(flusher, monkeypatch, name):
    spoil(monkeypatch, name, lambda found: found * 1.01)
    with pytest.raises(CheckFailedError, match=name):
        gemv(40, 30, "float32", [0.5], rounds=1, flusher=flusher)


def test_nan_is_refused():
    with pytest.raises(CheckFailedError):
        check_close("it", torch.tensor([torch.nan]), torch.tensor([1.0]), torch.float32)


def test_what_does_not_fit_into_memory_is_refused(case, flusher, tiny, monkeypatch):
    monkeypatch.setattr(machine, "free_bytes", lambda *_: 1 << 20)
    for measure in (
        lambda: decode(case, PQ, rounds=1, flusher=flusher),
        lambda: gather(case, rounds=1, flusher=flusher),
        lambda: gemv(2000, 2000, "float32", [0.5], rounds=1, flusher=flusher),
        lambda: step(tiny, [PQ], tokens=10**6, dtype="float32", read_tokens=50, rounds=1, flusher=flusher),
    ):
        with pytest.raises(ValueError, match="GiB are free; give fewer tokens"):
            measure()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": 0}, "tokens=0"),
        ({"query_heads": 3}, "3 query heads"),
        ({"dtype": "int8"}, "'int8'"),
        ({"read_tokens": -1}, "read_tokens=-1"),
    ],
)
def test_impossible_cases_name_the_value(case, change, said):
    with pytest.raises(ValueError, match=said):
        replace(case, **change)


def test_other_values_out_of_range(case, flusher):
    with pytest.raises(ValueError, match="oracle"):
        scan(case, "oracle", rounds=1, flusher=flusher)
    with pytest.raises(ValueError, match="read_tokens=701"):
        gather(replace(case, read_tokens=701), rounds=1, flusher=flusher)
    with pytest.raises(ValueError, match=r"active share 1\.5"):
        gemv(40, 30, "float32", [1.5], rounds=1, flusher=flusher)
    with pytest.raises(ValueError, match="0 rounds"):
        gather(case, rounds=0, flusher=flusher)
    with pytest.raises(ValueError, match="builds no index over 90 tokens"):
        build(Case(90, 4, 2, 32, read_tokens=0), PQ, rounds=1, flusher=flusher)
    with pytest.raises(ValueError, match="-1 threads"), using_threads(-1):
        pass
