"""Engines in processes of their own: whose turn it is, what is counted, and what is said when one fails."""

from functools import partial

import pytest

from keyhole.bench.against.engine import Entrant
from keyhole.bench.against.measure import Plan, measure, workers
from keyhole.bench.against.worker import EngineError, has_peaks
from keyhole.bench.checks import CheckFailedError
from tests.bench.against.played import Played

pytestmark = pytest.mark.skipif(not has_peaks(), reason="this system does not tell a process's peak memory")

PLAN = Plan((10, 40), list(range(10)), rounds=3, steps=2)


def quiet(*_: object) -> None:
    pass


def test_every_engine_does_the_same():
    with workers([Entrant("one", Played), Entrant("two", Played)]) as engines:
        found = measure(engines, PLAN, quiet, ours=frozenset({"one"}))
        seen = [engine.call("seen") for engine in engines]
    turns = ["step"] * 3 * (2 + 1)
    assert (
        seen[0]
        == seen[1]
        == [f"start {10 + PLAN.room}", "read 10", *turns, f"start {40 + PLAN.room}", "fill 40", *turns]
    )
    assert PLAN.room == 1 + len(turns)
    assert [(one.engine, one.keyhole, one.tokens, one.synthetic) for one in found.figures] == [
        ("one", True, 10, False),
        ("two", False, 10, False),
        ("one", True, 40, True),
        ("two", False, 40, True),
    ]
    assert all(len(one.step_ms) == 3 * 2 for one in found.figures)
    assert [one.prompt_seconds is None for one in found.figures] == [False, False, True, True]
    assert all(0 < one.loaded <= one.peak for one in found.figures)
    assert found.about == {"one": "played 1.0", "two": "played 1.0"}
    assert found.notes == ["KL(one || two) of the token behind 10: 0.0000 nats"]


def test_engines_that_compute_different_models_are_not_reported():
    other = Entrant("two", partial(Played, favourite=1))
    with workers([Entrant("one", Played), other]) as engines, pytest.raises(CheckFailedError, match="two"):
        measure(engines, PLAN, quiet, ours=frozenset())


@pytest.mark.parametrize(
    ("fails", "message"), [("raises", "bad: ValueError: no more"), ("dies", "bad .*code 7")]
)
def test_an_engine_that_fails_is_named(fails, message):
    bad = Entrant("bad", partial(Played, fails=fails))
    with workers([bad]) as engines, pytest.raises(EngineError, match=message):
        measure(engines, PLAN, quiet, ours=frozenset())


def test_an_engine_that_cannot_be_made_is_named():
    with (
        pytest.raises(EngineError, match=r"bad: TypeError: .*no_such"),
        workers([Entrant("bad", partial(Played, no_such=1))]),
    ):
        pass
