"""The quick form of `fuzz.py`: a few hundred wrong requests, and bodies that hypothesis shrinks."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.http.clients import client_of
from tests.serving.http.conftest import HERMES
from tests.serving.http.fakes import FakeLibrary, FakeScheduler
from tests.serving.http.fuzz import attack_own
from tests.serving.http.wrong import BODIES, broken


def test_wrong_requests_end_in_answers_and_leave_nothing_behind():
    statuses, failures = attack_own(count=200, seed=7)
    assert failures == []
    assert statuses.total() == 200
    assert statuses["200"]
    assert statuses["400"]


@settings(max_examples=200)
@given(st.sampled_from(sorted(BODIES)), st.integers(0, 2**32))
def test_a_broken_body_is_answered_or_refused_in_openais_form(path, seed):
    scheduler = FakeScheduler(library=FakeLibrary(), chat_template=HERMES)
    with client_of(scheduler) as client:
        body = broken(Random(seed), path)
        response = client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404, 413), response.text
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert scheduler.open == 0
