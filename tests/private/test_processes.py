"""Parties as processes on links of the loopback: what a user runs, and what becomes of a party that dies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("spu", reason="the package spu is not installed; `make test-private` has it")
from keyhole.private.cost import Heads
from keyhole.private.runtime.demo import answered, benched
from keyhole.private.runtime.jobs import Job
from keyhole.private.runtime.launch import launch
from keyhole.private.runtime.links import PartyError
from keyhole.private.settings import Settings

PLAIN = Path(__file__).parent / "plain"


def test_processes_open_the_tokens_of_plaintext_decoding() -> None:
    results, trace = answered(PLAIN / "gpt2-static", "aby3", 1, "loopback", 60, parallel=False)
    assert results[0].tokens == results[0].expected
    assert trace.opened == {}
    assert trace.bytes > 0


def test_a_network_between_them_changes_nothing_but_time() -> None:
    plain, far = (
        benched(Heads(1, 1, 8), Settings(), 9, "aby3", network, 60, parallel=False)
        for network in ("loopback", "lan")
    )
    assert plain.bytes == far.bytes
    assert far.error < 5e-3


@pytest.mark.parametrize(("protocol", "rank"), [("aby3", 2), ("cheetah", 1)])
def test_the_others_notice_a_party_that_dies(protocol: str, rank: int) -> None:
    job = Job(0, [], protocol, 10.0, "", folder=str(PLAIN / "gpt2-static"), lengths=[(16, 3)])
    with pytest.raises(PartyError, match="without a word") as raised:
        launch(job, started=lambda processes: processes[rank].kill())
    assert re.search("client: .*lost another party", str(raised.value))
