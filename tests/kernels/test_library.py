"""Choice of the native library, and calls from several threads."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from keyhole import kernels
from keyhole.kernels.backend import library
from tests.kernels.cases import make_index

native = pytest.mark.skipif(not kernels.native_available(), reason="no native library is built")


def in_a_new_process(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@native
def test_the_highest_level_is_the_default():
    result = in_a_new_process("from keyhole import kernels; print(kernels.describe())", KEYHOLE_CPU_LEVEL="")
    assert f"native kernels: {kernels.cpu_levels()[-1]}, " in result.stdout


@native
def test_the_environment_chooses_a_level():
    result = in_a_new_process(
        "from keyhole import kernels; print(kernels.describe())", KEYHOLE_CPU_LEVEL="base"
    )
    assert "native kernels: base, " in result.stdout


def test_an_unsupported_level_is_refused():
    result = in_a_new_process("from keyhole import kernels; kernels.describe()", KEYHOLE_CPU_LEVEL="sse9")
    assert "KEYHOLE_CPU_LEVEL='sse9' is not a level this machine can run" in result.stderr


def test_importing_loads_nothing():
    result = in_a_new_process("from keyhole.kernels.backend import library; print(library._current)")
    assert result.stdout.strip() == "[]"


def test_without_a_library_everything_runs_on_the_reference(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "DIRECTORY", tmp_path)
    monkeypatch.setattr(library, "_current", [])
    index = make_index()
    assert not kernels.native_available()
    assert "none" in kernels.describe()
    assert kernels.pq_select(*index.parts, 0, 300, scale=1.0, k=5).counts.tolist() == [5, 5]
    with pytest.raises(RuntimeError, match="built without a C"):
        kernels.pq_select(*index.parts, 0, 300, scale=1.0, k=5, impl="native")


def test_a_library_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(library, "ABI_VERSION", 999)
    library._open.cache_clear()
    try:
        if (library.DIRECTORY / "libkeyhole_base.so").exists():
            with pytest.raises(RuntimeError, match="ABI"):
                kernels.cpu_levels()
    finally:
        library._open.cache_clear()


@native
def test_other_devices_and_dtypes_fall_back():
    index = make_index()
    with pytest.raises(RuntimeError, match="not on the CPU"):
        kernels.pq_scores(index.query.to("meta"), *index.parts[1:], 0, scale=1.0, impl="native")
    weight = torch.ones(2, 2, dtype=torch.float16)
    assert kernels.matvec_skip_columns(weight, torch.ones(2)).tolist() == [2.0, 2.0]
    with pytest.raises(RuntimeError, match="no native code"):
        kernels.matvec_skip_columns(weight, torch.ones(2), impl="native")


def test_concurrent_calls_agree():
    index = make_index(rows=3, n=20000, subspaces=16)
    keys, values = torch.randn(2, 3, 20000, 64).unbind(0)

    def run(_: int) -> list[torch.Tensor]:
        picked = kernels.pq_select(*index.parts, 0, 20000, scale=index.scale, k=200)
        query = torch.ones(3, 4, 64)
        attended = kernels.gather_attention(query, keys, values, picked.slots, picked.counts, scale=0.1)
        return [*picked, attended.out, attended.lse]

    expected = run(0)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(run, range(40)):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_results_do_not_depend_on_threads(threads):
    index = make_index(rows=1, n=70000, subspaces=16)
    before = torch.get_num_threads()
    expected = kernels.pq_select(*index.parts, 0, 70000, scale=index.scale, k=200, impl="reference")
    torch.set_num_threads(threads)
    try:
        found = kernels.pq_select(*index.parts, 0, 70000, scale=index.scale, k=200)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found.slots, expected.slots)
