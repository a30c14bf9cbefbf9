"""What the scheduler says of a step, and which rows of a batch are whose; without vLLM."""

from types import SimpleNamespace

import pytest
import torch

from keyhole.core.errors import SpecError
from keyhole.engines.vllm.accounts import Accounts, StepUsage
from keyhole.engines.vllm.announcer import Announcer, Scheduled, Step
from keyhole.engines.vllm.config import settings_of
from keyhole.engines.vllm.metadata import Batch, matched
from keyhole.engines.vllm.usage import RequestUsage

BLOCK = 4
TABLES = {"a": [5, 6, 7], "b": [8, 9]}


def _decided(new=(), cached=(), resumed=(), finished=(), preempted=None):
    """As vLLM's scheduler output: new are (id, prompt, begin, count), cached (id, begin, count)."""
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=request, prompt_len=prompt, num_computed_tokens=begin)
            for request, prompt, begin, _ in new
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[request for request, _, _ in cached],
            num_computed_tokens=[begin for _, begin, _ in cached],
            resumed_req_ids=set(resumed),
        ),
        num_scheduled_tokens={one[0]: one[-1] for one in (*new, *cached)},
        finished_req_ids=set(finished),
        preempted_req_ids=preempted,
        kv_connector_block_state=SimpleNamespace(get_block_ids=lambda request: (TABLES[request],)),
    )


def test_a_step_is_announced():
    announcer = Announcer([BLOCK])
    first = announcer.step(_decided(new=[("a", 9, 0, 6), ("b", 3, 0, 3)]))
    assert first.scheduled == (Scheduled("a", 0, 6, 9, (5,)), Scheduled("b", 0, 3, 3, (8,)))
    assert first.gone == {"a", "b"}, "whatever had these names before"
    later = announcer.step(_decided(cached=[("a", 6, 3)], finished=["b"]))
    assert later == Step((Scheduled("a", 6, 3, 9, (6,)),), frozenset({"b"}))
    again = announcer.step(_decided(cached=[("a", 4, 5)], resumed=["a"]))
    assert again.gone == {"a"}
    assert again.scheduled[0].prompt == 9, "what was generated is no prompt"


def test_rows_are_known_by_their_blocks():
    """Whatever the order of a batch, and with rows that only fill it up."""
    step = Step((Scheduled("a", 6, 3, 9, (6,)), Scheduled("b", 3, 1, 3, (8,))), frozenset())
    table = torch.tensor([[8, 9, 0], [5, 6, 7], [0, 0, 0]], dtype=torch.int32)
    common = SimpleNamespace(
        query_start_loc_cpu=torch.tensor([0, 1, 4, 4]),
        seq_lens_cpu_upper_bound=torch.tensor([4, 9, 0]),
        block_table_tensor=table,
    )
    rows = matched(step, Batch.of(common), 0, BLOCK)
    assert [(row.request, row.begin, row.count, row.start, row.prompt) for row in rows] == [
        ("b", 3, 1, 0, 3),
        ("a", 6, 3, 1, 9),
    ]
    assert [row.table.tolist() for row in rows] == [[8], [5, 6, 7]]


def test_another_batch_than_announced_is_refused():
    step = Step((Scheduled("a", 6, 3, 9, (6,)),), frozenset())
    batch = Batch([0, 2], [8], torch.tensor([[5, 6, 7]]))
    with pytest.raises(RuntimeError, match="not tested with this version"):
        matched(step, batch, 0, BLOCK)


def _usage(steps, read, nbytes):
    return RequestUsage(steps, 10.0 * steps, read, nbytes)


def test_workers_are_joined_and_totals_become_counts():
    one, other = (StepUsage({"a": _usage(2, read, 100.0)}) for read in (4.0, 8.0))
    joined = one.joined(other)
    assert joined.totals["a"] == _usage(2, 6.0, 200.0)
    accounts = Accounts()
    accounts.note(joined)
    assert accounts.take_new() == {"steps": 2, "context": 20.0, "read": 6.0, "bytes": 200.0}
    assert accounts.take_new() == {}
    accounts.note(StepUsage({"a": _usage(3, 9.0, 300.0)}))
    assert accounts.take_new() == {"steps": 1, "context": 10.0, "read": 3.0, "bytes": 100.0}
    accounts.note(StepUsage({"a": _usage(1, 3.0, 100.0)}))
    assert accounts.take_new()["steps"] == 1, "counted anew after a preemption"


def test_the_step_under_way_when_a_request_ends_counts_once():
    """An engine that schedules ahead hears of it after the request is closed."""
    accounts = Accounts()
    accounts.note(StepUsage({"a": _usage(5, 15.0, 500.0)}))
    accounts.close(["a"])
    accounts.note(StepUsage({"a": _usage(6, 18.0, 600.0)}))
    assert accounts.take_new() == {"steps": 6, "context": 60.0, "read": 18.0, "bytes": 600.0}
    for _ in range(2):
        accounts.close([])
    assert len(accounts) == 0
    assert accounts.of("a") == RequestUsage()


def _config(asked):
    return SimpleNamespace(additional_config=asked)


@pytest.mark.parametrize("asked", [{}, None, {"other": 1}])
def test_without_the_setting_nothing_is_asked_for(asked):
    assert settings_of(_config(asked)) is None
    assert settings_of(None) is None


@pytest.mark.parametrize(
    ("asked", "mirrored"),
    [
        ({"method": "quest(budget=0.1)"}, False),
        ({"method": "quest(budget=0.1)", "offload": "host"}, True),
        ({"method": "snapkv(budget=0.5)"}, True),
        ({"method": "pqcache(kv_dtype=int8)"}, True),
    ],
)
def test_settings(asked, mirrored):
    settings = settings_of(_config({"keyhole": asked}))
    assert settings is not None
    assert settings.mirrored == mirrored
    assert str(settings.recipe).startswith(asked["method"].split("(")[0])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("quest", "not an object"),
        ({"metod": "quest"}, "metod"),
        ({}, "a string, not None"),
        ({"method": "qest"}, "qest"),
        ({"method": "quest", "offload": "moon"}, "moon"),
    ],
)
def test_settings_that_cannot_be_read(asked, said):
    with pytest.raises(SpecError, match=said):
        settings_of(_config({"keyhole": asked}))


def test_a_setting_in_other_letters_is_not_passed_over():
    with pytest.raises(SpecError, match="not 'Keyhole'"):
        settings_of(_config({"Keyhole": {"method": "quest"}}))
