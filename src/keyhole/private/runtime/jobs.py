"""A party as a process of its own: `python -m keyhole.private.runtime.jobs`, with its job as JSON on stdin.

Results are lines of JSON on stdout, an error is one line of JSON on stderr and exit code 1.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spu import libspu

from keyhole.private import cost, files
from keyhole.private.runtime import bench
from keyhole.private.runtime.links import CLIENT, SERVER, description, reporting
from keyhole.private.runtime.party import Party
from keyhole.private.runtime.protocols import config_of, protocol_of
from keyhole.private.runtime.session import Answer, Session
from keyhole.private.runtime.trace import log_to
from keyhole.private.settings import Settings


@dataclass(frozen=True)
class Job:
    """What one party is to do.

    Attributes:
        addresses: where this party finds each, in order of rank; its own is where it listens.
        folder: of a run; each party reads only its own part of it.
        lengths: tokens of each prompt and of each answer, which are public.
        layer: of a benchmark: heads, settings, tokens; instead of a folder.
    """

    rank: int
    addresses: list[str]
    protocol: str
    timeout: float
    log: str
    profile: bool = False
    parallel: bool = False
    folder: str = ""
    lengths: list[tuple[int, int]] = field(default_factory=list)
    layer: dict[str, Any] = field(default_factory=dict)


def play(job: Job) -> None:
    """Connect, do the job, and say what came of it."""
    log_to(Path(job.log))
    protocol = protocol_of(job.protocol)
    desc = description(job.addresses, job.timeout)
    with reporting("connecting", job.rank, job.timeout):
        link = libspu.link.create_brpc(desc, job.rank)
    config = config_of(protocol, profile=job.profile, parallel=job.parallel)
    party = Party(link, config, protocol, job.timeout)
    _say({"connected": job.rank})
    _bench(party, job) if job.layer else _run(party, job)
    link.stop_link()


def _run(party: Party, job: Job) -> None:
    folder = Path(job.folder)
    run = files.read_run(folder)
    weights = files.read_weights(folder, run) if job.rank == SERVER else None
    cases = files.read_cases(folder, run)[: len(job.lengths)] if job.rank == CLIENT else None

    def told(place: int, answer: Answer) -> None:
        _say({"prompt": place, **answer._asdict()})

    Session(party, run, weights, cases, told).play(job.lengths)
    _say({"shared": party.shared})


def _bench(party: Party, job: Job) -> None:
    settings = Settings.of_json(job.layer["settings"])
    layer = bench.layer_of(cost.Heads(*job.layer["heads"]), settings, job.layer["tokens"])
    _say({"measured": bench.measure(party, layer)._asdict()})


def _say(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        play(Job(**json.load(sys.stdin)))
    except Exception as error:
        sys.stderr.write(json.dumps({"error": f"{error}", "kind": type(error).__name__}) + "\n")
        sys.exit(1)
