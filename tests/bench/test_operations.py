"""Every benchmark gives rows that hold together, whatever the times are."""

import json
from dataclasses import asdict, replace

import pytest

from keyhole.bench.build import build
from keyhole.bench.decode import decode
from keyhole.bench.faiss_scan import FAISS
from keyhole.bench.gather import gather
from keyhole.bench.gemv import gemv
from keyhole.bench.result import Result
from keyhole.bench.scan import scan

KEYS = [
    *("op", "method", "impl", "tokens", "query_heads", "kv_heads", "head_dim", "dtype", "read_tokens"),
    *("ms", "bytes", "bandwidth_share", "baseline", "baseline_ms", "ratio", "batch"),
]
PQ = "pqcache(subspaces=4, bits=4, iterations=1)"


def checked_rows(results: list[Result]) -> list[dict]:
    rows = [asdict(row) for result in results for row in result.rows]
    assert rows
    for row in rows:
        assert list(row) == KEYS
        assert row["ms"] > 0
        assert row["bytes"] > 0
        assert row["bandwidth_share"] > 0
        assert row["ratio"] == pytest.approx(row["baseline_ms"] / row["ms"])
        json.dumps(row)
    return rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_decode_counts_what_a_step_moves(case, flusher, dtype):
    case = replace(case, dtype=dtype)
    rows = checked_rows(decode(case, PQ, rounds=2, flusher=flusher))
    assert [row["baseline"] for row in rows] == ["sdpa folded", "sdpa enable_gqa"]
    read = 100 + 32 + 64
    codes = 2 * (case.tokens - 64) * 2
    fitted = 2 * 4 * (16 * 32 + 2 * 32 * 32)  # codebooks, rotation, second moment of what codes lose
    assert rows[0]["read_tokens"] == 100
    index_bytes = rows[0]["bytes"] - read * case.token_bytes
    assert codes < index_bytes <= codes + fitted + 2 * 64
    assert rows[0]["op"] == "decode"
    assert rows[0]["method"] == str(case.recipe(PQ))


def test_decode_of_a_dense_method_reads_everything(case, flusher):
    row = checked_rows(decode(case, "dense", rounds=1, flusher=flusher))[0]
    assert row["read_tokens"] == case.tokens + 1
    assert row["impl"] == "torch"


def test_decode_tells_what_it_leaves_out(case, flusher):
    notes = "\n".join(decode(case, PQ, rounds=1, flusher=flusher)[0].notes)
    assert "building the index" in notes
    assert "every 65 steps" in notes


def test_own_budget_of_the_method(case, flusher):
    spec = "pqcache(subspaces=4, bits=4, iterations=1, budget=50)"
    row = checked_rows(decode(replace(case, read_tokens=0), spec, rounds=1, flusher=flusher))[0]
    assert row["read_tokens"] == 50
    row = checked_rows(scan(replace(case, read_tokens=0), spec, rounds=1, flusher=flusher))[0]
    assert row["read_tokens"] == 50


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_scan(case, flusher, impl):
    rows = checked_rows(scan(case, PQ, rounds=1, flusher=flusher, impl=impl))
    assert {row["read_tokens"] for row in rows} == {100}
    assert impl == "auto" or rows[0]["impl"] == "reference"


def test_scan_says_when_faiss_is_missing(case, flusher, monkeypatch):
    monkeypatch.setattr("keyhole.bench.faiss_scan.find_spec", lambda _: None)
    result = scan(case, PQ, rounds=1, flusher=flusher)[0]
    assert FAISS not in {row.baseline for row in result.rows}
    assert any("keyhole[bench]" in note for note in result.notes)


def test_scan_against_faiss(case, flusher):
    pytest.importorskip("faiss")
    rows = checked_rows(scan(case, PQ, rounds=1, flusher=flusher))
    assert FAISS in {row["baseline"] for row in rows}


def test_scan_by_mass(case, flusher):
    spec = "pqcache(subspaces=4, bits=4, mass=0.5)"
    row = checked_rows(scan(replace(case, read_tokens=0), spec, rounds=1, flusher=flusher))[0]
    assert 16 <= row["read_tokens"] <= case.tokens


def test_gather(case, flusher):
    rows = checked_rows(gather(case, rounds=1, flusher=flusher))
    assert rows[0]["bytes"] == 100 * case.token_bytes + 2 * 100 * 4
    assert {row["method"] for row in rows} == {
        "gather_attention",
        *(f"storage of int{bits}" for bits in (8, 4, 3, 2)),
    }
    assert rows[2]["bytes"] < rows[0]["bytes"]


def test_gemv(flusher):
    rows = checked_rows(gemv(60, 31, "float32", [0.1, 0.5], rounds=1, flusher=flusher))
    assert {row["read_tokens"] for row in rows} == {6, 30}
    assert {row["baseline"] for row in rows} == {"torch dense", "torch index_select"}
    assert {row["query_heads"] for row in rows} == {None}
    assert all(row["bytes"] == row["read_tokens"] * 31 * 4 for row in rows)


def test_build(case, flusher):
    row = checked_rows(build(replace(case, read_tokens=0), PQ, rounds=1, flusher=flusher))[0]
    assert row["baseline"] == "dense prompt"
    assert row["bytes"] > case.cache_bytes / 2


def test_build_extrapolates_a_prompt_that_would_take_too_long(case, flusher, monkeypatch):
    monkeypatch.setattr("keyhole.bench.build._SHORTEST", 100)
    monkeypatch.setattr("keyhole.bench.build._LONGEST_SECONDS", 0.0)
    monkeypatch.setattr("keyhole.bench.build._ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr("keyhole.bench.build._prompt_seconds", lambda _case, _source, tokens: tokens**2 / 1e4)
    result = build(replace(case, read_tokens=0), PQ, rounds=1, flusher=flusher)[0]
    row = checked_rows([result])[0]
    assert row["baseline_ms"] == pytest.approx(case.tokens**2 / 10)
    assert row["baseline"] == "dense prompt, scaled from 100"
    assert "square" in result.notes[0]


def test_a_step_of_a_layer_whose_heads_keep_different_numbers(case, flusher):
    rows = checked_rows(decode(case, "adakv(window=8)", rounds=1, flusher=flusher))
    assert {row["baseline"] for row in rows} == {"sdpa folded", "sdpa enable_gqa"}


def test_a_step_that_drops_a_token_need_not_be_taken_back(case, flusher):
    rows = checked_rows(decode(case, "h2o(window=8)", rounds=3, flusher=flusher))
    assert all(row["read_tokens"] == 101 for row in rows)
