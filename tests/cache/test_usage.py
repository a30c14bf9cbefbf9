import pytest
import torch

from keyhole.attention import Part
from keyhole.cache.decode_step import Read
from keyhole.cache.usage import Usage
from keyhole.core.layout import regions
from keyhole.selection import Selection
from keyhole.storage import Lookups

TOKEN = 3 * (16 * 2 + 8 * 4)  # bytes of one token, all KV heads


def selected(counts, mass, padding=(0, 0)):
    counts = torch.tensor(counts, dtype=torch.int32)
    slots = torch.zeros(2, 3, int(counts.max()), dtype=torch.int32)
    selection = Selection(slots, counts, torch.tensor(mass))
    part = Part(torch.zeros(2, 3, 8), torch.zeros(2, 3))
    return Read(part, selection, regions(100, padding, 4, 10, torch.device("cpu")), index_bytes=70)


def test_everything():
    usage = Usage()
    usage.record_everything(100, 100, TOKEN)
    usage.record_everything(101, 101, TOKEN)
    assert usage == Usage(steps=2, tokens=201, read=201, mass=2, bytes=201 * TOKEN)


def test_a_selection():
    usage = Usage()
    counts = [[5, 6, 7], [8, 9, 10]]
    usage.record_selection(selected(counts, [[0.5, 0.5, 0.5], [1.0, 1.0, 1.0]]), TOKEN)
    read = 4 + 10 + 7.5
    assert usage == Usage(steps=1, tokens=100, read=read, mass=0.75, bytes=read * TOKEN + 70 * 3)


def test_errors_are_of_the_steps_that_estimate_them():
    usage = Usage()
    usage.record_everything(100, 100, TOKEN)
    assert usage.mean_error is None
    read = selected([[5, 6, 7], [8, 9, 10]], [[0.5] * 3] * 2)
    usage.record_selection(read, TOKEN)
    usage.record_selection(read._replace(error=torch.tensor([[0.1, 0.2, 0.3], [0.0, 0.0, 0.0]])), TOKEN)
    assert (usage.steps, usage.judged, usage.mean_error) == (3, 1, pytest.approx(0.1))
    total = usage + usage
    assert (total.judged, total.mean_error) == (2, pytest.approx(0.1))


def test_padding_is_no_token():
    usage = Usage()
    counts = [[5, 5, 5], [0, 0, 0]]
    usage.record_selection(selected(counts, [[1.0] * 3] * 2, padding=(0, 94)), TOKEN)
    assert usage.tokens == (100 + 6) / 2
    assert usage.read == pytest.approx((4 + 10 + 5 + 6) / 2)


def test_usages_add_up_and_leave_their_parts_alone():
    first, second = Usage(1, 2.0, 3.0, 0.5, 5.0), Usage(10, 20.0, 30.0, 5.0, 50.0)
    assert first + second == Usage(11, 22.0, 33.0, 5.5, 55.0)
    assert first == Usage(1, 2.0, 3.0, 0.5, 5.0)
    assert sum([first, second], Usage()) == first + second


def test_lookups_are_totals_of_a_storage_and_add_up_over_layers():
    usage = Usage()
    usage.record_lookups(Lookups(3, 1))
    usage.record_lookups(Lookups(5, 2))
    assert (usage.hits, usage.misses) == (5, 2)
    total = usage + usage
    assert (total.hits, total.misses) == (10, 4)
