"""A directory holds one whole generation, or the error says what is wrong."""

import json
import os
import random
import threading

import pytest
import torch
from safetensors.torch import load_file

from keyhole.core.errors import SavedStateError
from keyhole.core.generations import Generations
from keyhole.core.tensorfile import read_tensors, write_tensors
from tests.limits import limited_files


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.keys": torch.randn(2, 3, 40, 5, generator=generator),
        "a.codes": torch.randint(256, (7, 3), dtype=torch.uint8, generator=generator),
        "b": torch.randn(11, generator=generator).bfloat16(),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(seed),
    }


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype
        assert torch.equal(found[name], wanted[name])


@pytest.fixture
def held(tmp_path):
    return Generations(tmp_path / "held", "thing", 7, "make it again")


def visible(held):
    return sorted(path.name for path in held.path.iterdir() if not path.name.startswith("."))


def test_what_was_written_is_read(held):
    for seed in (0, 1):
        held.write(tensors(seed), {"fact": [seed, None, "é"]})
        manifest, found = held.read()
        assert manifest["fact"] == [seed, None, "é"]
        assert_equal(found, tensors(seed))
        assert visible(held) == sorted([manifest["file"], "thing.json"])
        assert_equal(load_file(held.path / manifest["file"]), tensors(seed))


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Generations("~/held", "thing", 7, "").write(tensors(), {})
    assert (tmp_path / "held" / "thing.json").exists()


def test_nothing_there(held):
    with pytest.raises(FileNotFoundError, match=r"thing\.json"):
        held.read()


def test_a_file_in_the_place_of_the_directory(held):
    held.path.write_text("")
    for use in (lambda: held.write(tensors(), {}), held.read):
        with pytest.raises(ValueError, match=r"held'? ?.*is a file"):
            use()


def test_a_dtype_that_cannot_be_written_is_named(held):
    with pytest.raises(TypeError, match="complex64"):
        held.write({"a": torch.zeros(3, dtype=torch.complex64)}, {})


def flipped(data, place, bit):
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return bytes(changed)


@pytest.mark.parametrize("flips", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_each_flipped_bit_is_refused(held, flips):
    held.write(tensors(), {"fact": "\u00e9", "number": 1e30})
    draw = random.Random(0)
    for name in visible(held):
        path = held.path / name
        good = path.read_bytes()
        for _ in range(flips // 2):
            path.write_bytes(flipped(good, draw.randrange(len(good)), draw.randrange(8)))
            with pytest.raises(SavedStateError, match=f"{name}.*make it again"):
                held.read()
        path.write_bytes(good)
    assert_equal(held.read()[1], tensors())


def test_each_bit_of_a_header_and_a_manifest_is_refused(held):
    held.write({"a": torch.arange(3)}, {"fact": "\u00e9"})
    for name in visible(held):
        path = held.path / name
        good = path.read_bytes()
        for place in range(len(good)):
            path.write_bytes(flipped(good, place, 5))
            with pytest.raises(SavedStateError):
                held.read()
        path.write_bytes(good)


def test_a_cut_or_longer_file_is_refused(held):
    held.write(tensors(), {})
    for name in visible(held):
        path = held.path / name
        good = path.read_bytes()
        cuts = [good[:end] for end in range(0, len(good), 31)]
        for data in (*cuts, good[:-1], good + b" ", good + b"\0" * 8):
            path.write_bytes(data)
            with pytest.raises(SavedStateError):
                held.read()
        path.write_bytes(good)


def test_tensors_of_another_save_are_refused(held, tmp_path):
    held.write(tensors(0), {})
    other = Generations(tmp_path / "other", "thing", 7, "")
    other.write(tensors(1), {})
    files = [each.path / each.manifest()["file"] for each in (held, other)]
    files[0].write_bytes(files[1].read_bytes())
    with pytest.raises(SavedStateError, match="does not match its digest"):
        held.read()


def test_exchanged_tensors_of_one_shape_are_refused(tmp_path):
    held = {"0.keys": torch.randn(4), "1.keys": torch.randn(4)}
    digests = write_tensors(tmp_path / "a", held)
    write_tensors(tmp_path / "b", {"0.keys": held["1.keys"], "1.keys": held["0.keys"]})
    with pytest.raises(SavedStateError, match=r"0\.keys does not match"):
        read_tensors(tmp_path / "b", digests)


def test_another_format_is_named(held):
    held.write(tensors(), {})
    with pytest.raises(SavedStateError, match=r"format 7, not 8; make it"):
        Generations(held.path, "thing", 8, "make it again").read()
    held.manifest_path.write_text(json.dumps({"format": 1}))
    with pytest.raises(SavedStateError, match=r"format 1, not 7"):
        held.read()


def test_lost_tensors_are_named(held):
    held.write(tensors(), {})
    name = held.manifest()["file"]
    (held.path / name).unlink()
    with pytest.raises(SavedStateError, match=f"{name} is gone"):
        held.read()


@pytest.mark.parametrize("limit", [0, 100, 3000])
def test_a_full_disk_leaves_the_old_generation(held, limit):
    held.write(tensors(0), {})
    before = visible(held)
    with limited_files(limit), pytest.raises(OSError, match=str(held.path)):
        held.write(tensors(1), {})
    assert_equal(held.read()[1], tensors(0))
    assert visible(held) == before


@pytest.mark.parametrize("broken", ["write_tensors", "write_text"])
def test_an_interrupt_leaves_the_old_generation(held, broken, monkeypatch):
    held.write(tensors(0), {})
    before = visible(held)

    def interrupt(path, *_):
        if broken == "write_tensors":
            path.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(f"keyhole.core.generations.{broken}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        held.write(tensors(1), {})
    assert_equal(held.read()[1], tensors(0))
    assert visible(held) == before


def test_an_interrupt_after_the_switch_leaves_the_new_generation(held, monkeypatch):
    held.write(tensors(0), {})
    real = os.fsync

    def interrupt(handle):
        real(handle)
        if os.path.isdir(os.readlink(f"/proc/self/fd/{handle}")):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        held.write(tensors(1), {})
    assert_equal(held.read()[1], tensors(1))


def test_leftovers_go_and_files_of_others_stay(held):
    held.write(tensors(0), {})
    left = [f"thing-{'0' * 32}.safetensors", ".thing.partial-ab.json"]
    others = [
        "thing.safetensors",
        "thing-mine.safetensors",
        "notes.txt",
        "other.safetensors",
        f"other-{'0' * 32}.safetensors",
    ]
    for name in left + others:
        (held.path / name).touch()
    held.write(tensors(1), {})
    names = os.listdir(held.path)
    assert not set(left) & set(names)
    assert set(others) <= set(names)


def test_readers_see_one_whole_generation_while_two_write(held):
    held.write(tensors(0), {"seed": 0})
    failures, stop = [], threading.Event()

    def write(seed):
        try:
            for _ in range(15):
                held.write(tensors(seed), {"seed": seed})
        except Exception as error:
            failures.append(error)

    def read():
        while not stop.is_set():
            try:
                manifest, found = held.read()
                assert_equal(found, tensors(manifest["seed"]))
            except Exception as error:
                failures.append(error)
                return

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(seed,)) for seed in (1, 2)]
    [thread.start() for thread in (reader, *writers)]
    [thread.join() for thread in writers]
    stop.set()
    reader.join()
    assert not failures
    assert len(visible(held)) == 2


def test_a_reader_that_has_an_old_manifest_reads_the_new_generation(held, monkeypatch):
    held.write(tensors(0), {})
    real, seen = Generations.tensors, []

    def late(self, manifest):
        if not seen:
            seen.append(manifest)
            held.write(tensors(1), {})
        return real(self, manifest)

    monkeypatch.setattr(Generations, "tensors", late)
    assert_equal(held.read()[1], tensors(1))


@pytest.mark.parametrize("text", ["", "[" * 100_000, "null", '{"format": 8}'])
def test_any_manifest_that_cannot_be_used_is_refused_and_saved_over(held, text):
    held.write(tensors(), {})
    held.manifest_path.write_text(text)
    with pytest.raises(SavedStateError, match="make it again"):
        held.read()
    held.write(tensors(1), {})
    assert_equal(held.read()[1], tensors(1))
    assert len(list(held.path.iterdir())) == 3


@pytest.mark.parametrize(("path", "error"), [(None, TypeError), (3, TypeError), ("", ValueError)])
def test_what_is_no_path_is_refused(path, error):
    with pytest.raises(error):
        Generations(path, "thing", 7, "make it again").write(tensors(), {})


def test_a_home_that_nobody_has_is_named():
    with pytest.raises(ValueError, match="~nobody-has-this-name/x"):
        Generations("~nobody-has-this-name/x", "thing", 7, "make it again").read()


def test_bytes_are_a_path_as_elsewhere(tmp_path):
    held = Generations(os.fsencode(tmp_path / "held"), "thing", 7, "make it again")
    held.write(tensors(), {})
    assert held.path == tmp_path / "held"
