"""The quick form of `fuzz.py`: a few hundred wrong requests, and bodies that hypothesis shrinks."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.http.clients import client_of
from tests.serving.http.conftest import HERMES
from tests.serving.http.fakes import FakeLibrary, FakeScheduler
from tests.serving.http.fuzz import attack_own
from tests.serving.http.wrong import BODIES, broken


def test_wrong_requests_end_in_answers_and_leave_nothing_behind():
    statuses, failures = attack_own(count=150, seed=7)
    assert failures == []
    assert statuses.total() == 150
    assert statuses["200"]
    assert statuses["400"]


@pytest.fixture(scope="module")
def attacked():
    """A client, and the scheduler behind it."""
    scheduler = FakeScheduler(library=FakeLibrary(), chat_template=HERMES)
    with client_of(scheduler) as client:
        yield client, scheduler


@settings(max_examples=150)
@given(path=st.sampled_from(sorted(BODIES)), seed=st.integers(0, 2**32))
def test_a_broken_body_is_answered_or_refused_in_openais_form(attacked, path, seed):
    client, scheduler = attacked
    body = broken(Random(seed), path)
    response = client.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert scheduler.open == 0
