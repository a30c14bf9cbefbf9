"""Whose turn it is: nobody starves, short prompts go first, long ones one after another."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhole.serving.turns import Turns
from tests.serving.fakes import CHUNK, Fake

ARRIVALS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 60), st.integers(1, 12)), min_size=1, max_size=12
)


def run(turns, log, arrivals=(), most=10_000):
    """Pieces of work until nothing is left; jobs arrive before the piece of their number."""
    arrivals, piece = sorted(arrivals, key=lambda each: each[0]), 0
    while len(turns) or arrivals:
        while arrivals and (arrivals[0][0] <= piece or not len(turns)):
            turns.add(arrivals.pop(0)[1])
        job = turns.next()
        assert job is not None
        if job.advance():
            turns.remove(job)
        piece += 1
        assert piece < most
    return log


def made(arrivals, log):
    return [
        (at, Fake(prompt, steps, log=log, name=number)) for number, (at, prompt, steps) in enumerate(arrivals)
    ]


@given(ARRIVALS)
def test_every_job_ends_and_each_does_all_its_work(arrivals):
    log = run(Turns(CHUNK), log := [], made(arrivals, log))
    for number, (_, prompt, steps) in enumerate(arrivals):
        mine = [tokens for name, tokens in log if name == number]
        assert sum(mine) == prompt
        assert mine.count(0) == steps


@given(ARRIVALS)
def test_few_prompt_tokens_are_read_between_two_steps_of_an_answer(arrivals):
    log = run(Turns(CHUNK), log := [], made(arrivals, log))
    for number in range(len(arrivals)):
        places = [place for place, entry in enumerate(log) if entry == (number, 0)]
        for first, second in pairwise(places):
            between = log[first + 1 : second]
            # One call of a long prompt, and short ones for what was earned by all that.
            steps = sum(not tokens for _, tokens in between)
            assert sum(tokens for _, tokens in between) <= CHUNK + (6 * CHUNK + steps)
            for other in {name for name, _ in between}:
                assert between.count((other, 0)) <= 2


def test_a_short_prompt_is_read_before_the_next_piece_of_a_long_one():
    turns, log = Turns(CHUNK), []
    turns.add(Fake(95, 1, log=log, name="long"))
    run(turns, log, [(3, Fake(7, 1, log=log, name="short"))])
    before = log[: log.index(("short", 7))]
    assert before == [("long", CHUNK)] * 3


def test_a_short_prompt_goes_before_the_steps_that_are_left_of_a_turn():
    turns, log = Turns(CHUNK), []
    for name in range(6):
        turns.add(Fake(1, 8, log=log, name=name))
    run(turns, log, [(15, Fake(7, 1, log=log, name="short"))])
    assert log.index(("short", 7)) == 15


def test_of_long_prompts_the_first_and_the_shortest_take_turns():
    turns, log = Turns(CHUNK), []
    for name, calls in (("first", 12), ("middle", 6), ("least", 3)):
        turns.add(Fake(calls * CHUNK, 1, log=log, name=name))
    run(turns, log)
    pieces = [name for name, tokens in log if tokens]
    assert pieces[:6] == ["first", "least"] * 3
    assert pieces[6:].index("middle") < 2
    assert sorted(pieces) == ["first"] * 12 + ["least"] * 3 + ["middle"] * 6


def test_the_longest_of_long_prompts_is_not_passed_over_for_ever():
    turns, log = Turns(CHUNK), []
    turns.add(Fake(20 * CHUNK, 1, log=log, name="longest"))
    others = [(at, Fake(2 * CHUNK, 1, log=log, name=f"other {at}")) for at in range(100)]
    run(turns, log, others, most=30_000)
    places = [place for place, (name, _) in enumerate(log) if name == "longest"]
    assert max(b - a for a, b in pairwise(places)) <= 8


@pytest.mark.parametrize("count", [1, 6])
def test_short_prompts_that_keep_coming_do_not_stop_a_long_one_nor_an_answer(count):
    turns, log = Turns(CHUNK), []
    turns.add(Fake(5 * CHUNK, 1, log=log, name="long"))
    turns.add(Fake(1, 30, log=log, name="answer"))
    shorts = [(at, Fake(CHUNK, 1, log=log, name=f"s{at}.{n}")) for at in range(30) for n in range(count)]
    run(turns, log, shorts, most=30_000)
    # Short prompts of a call's tokens are read as often as a piece of the long one, and at the end as steps.
    assert max(place for place, (name, _) in enumerate(log) if name == "long") < 60
    steps = [place for place, entry in enumerate(log) if entry == ("answer", 0)]
    assert max(b - a for a, b in pairwise(steps)) <= 12


def test_many_answers_leave_long_prompts_a_share():
    turns, log = Turns(CHUNK), []
    for name in range(64):
        turns.add(Fake(1, 50, log=log, name=name))
    turns.add(Fake(9 * CHUNK, 1, log=log, name="long"))
    run(turns, log)
    calls = [place for place, entry in enumerate(log) if entry == ("long", CHUNK)]
    assert len(calls) == 9
    assert max(sum(not tokens for _, tokens in log[a:b]) for a, b in pairwise(calls)) == 16


def test_short_prompts_that_come_at_once_leave_room_for_steps():
    turns, log = Turns(CHUNK), []
    turns.add(Fake(1, 100, log=log, name="answer"))
    run(turns, log, [(5, Fake(CHUNK, 1, log=log, name=number)) for number in range(20)])
    first, last = log.index((0, CHUNK)), log.index((19, CHUNK))
    assert first == 5
    assert log[first:last].count(("answer", 0)) >= 14


def test_nothing_is_next_where_there_is_nothing():
    assert Turns(CHUNK).next() is None
