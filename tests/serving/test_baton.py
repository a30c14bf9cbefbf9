"""Work that takes turns: never beside its caller."""

import pytest

from keyhole.serving.baton import in_turns


def test_work_goes_on_only_while_it_is_waited_for():
    log = []

    def work(pause):
        for piece in range(3):
            log.append(f"work {piece}")
            pause()

    for piece in range(3):
        log.append(f"caller {piece}")
        if piece == 0:
            turns = in_turns(work)
        next(turns)
    assert list(turns) == []
    assert log == ["caller 0", "work 0", "caller 1", "work 1", "caller 2", "work 2"]


def test_what_it_raises_is_raised_to_the_caller():
    def work(pause):
        pause()
        raise ValueError("broken")

    turns = in_turns(work)
    next(turns)
    with pytest.raises(ValueError, match="broken"):
        next(turns)


def test_closing_ends_it_where_it_waits():
    log = []

    def work(pause):
        try:
            while True:
                pause()
        finally:
            log.append("closed")

    turns = in_turns(work)
    next(turns)
    turns.close()
    assert log == ["closed"]


def test_work_that_was_never_begun_is_not_done():
    log = []
    in_turns(lambda _: log.append("done")).close()
    assert not log
