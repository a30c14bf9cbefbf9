"""Candidates take turns, and are prepared and tidied up around each run."""

import torch

from keyhole.tuning.timing import CacheFlusher, Candidate, interleave, using_threads


def recording(log, name):
    def note(what):
        return lambda: log.append((name, what))

    return Candidate(name, "", note("run"), 0, 0, before=note("before"), after=note("after"))


def test_candidates_take_turns_and_start_in_turn(flusher):
    log: list[tuple[str, str]] = []
    times = interleave([recording(log, "a"), recording(log, "b")], rounds=3, flusher=flusher)
    assert [name for name, what in log if what == "run"] == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert [what for _, what in log] == ["before", "run", "after"] * 8
    assert all(0 < its.best <= its.median for its in times)


def test_evictor_measures_a_bandwidth():
    flusher = CacheFlusher(1 << 18)
    before = sum(map(len, flusher._seconds))
    flusher()
    assert sum(map(len, flusher._seconds)) > before
    assert flusher.bandwidth > 0


def test_a_described_candidate_holds_on_to_nothing():
    log: list[tuple[str, str]] = []
    described = recording(log, "a").described()
    described.before(), described.run(), described.after()
    assert log == []


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with using_threads(0):
        assert torch.get_num_threads() == before
