"""Answering the prompts of a plain folder by processes, and comparing with plaintext decoding."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from keyhole.private import cost, files
from keyhole.private.network import network_of
from keyhole.private.rates import Sent
from keyhole.private.runtime import bench
from keyhole.private.runtime.jobs import Job
from keyhole.private.runtime.launch import launch
from keyhole.private.runtime.links import CLIENT
from keyhole.private.runtime.protocols import protocol_of
from keyhole.private.runtime.trace import Trace
from keyhole.private.settings import Settings


class Result(NamedTuple):
    """One prompt.

    Attributes:
        tokens: as opened to the client.
        expected: of plaintext decoding by the same method.
        margin: the least by which one of those was ahead of the next best logit.
        seconds: of the first token, and a mean of the others.
    """

    tokens: list[int]
    expected: list[int]
    margin: float
    seconds: tuple[float, float]


def answered(
    folder: Path, protocol: str, prompts: int | None, network: str, timeout: float, *, parallel: bool
) -> tuple[list[Result], Trace]:
    """The first `prompts` of a folder, all where None.

    Raises:
        PlainFileError: the folder cannot be used.
        SettingsError: protocol or network are not served.
        PartyError: a party failed.
    """
    protocol_of(protocol)
    link, run = network_of(network), files.read_run(folder)
    cases = files.read_cases(folder, run)[:prompts]
    lengths = [(len(case.tokens), len(case.expected)) for case in cases]
    job = Job(
        0, [], protocol, timeout, "", profile=True, parallel=parallel, folder=str(folder), lengths=lengths
    )
    finished = launch(job, link)
    answers = [said for said in finished.said[CLIENT] if "prompt" in said]
    results = [
        Result(
            answer["tokens"],
            case.expected.tolist(),
            float(case.margins.min()),
            (answer["seconds"][0], sum(answer["seconds"][1:]) / max(len(answer["seconds"]) - 1, 1)),
        )
        for case, answer in zip(cases, answers, strict=True)
    ]
    return results, finished.trace


class Benchmark(NamedTuple):
    """One layer's decode attention: bytes of all parties and messages of one, of one run.

    Attributes:
        predicted: by the cost model, which is of ABY3 alone.
    """

    layer: bench.Layer
    predicted: Sent | None
    bytes: int
    messages: float
    seconds: float
    error: float
    trace: Trace


def benched(
    heads: cost.Heads,
    settings: Settings,
    tokens: int,
    protocol: str,
    network: str,
    timeout: float,
    *,
    parallel: bool,
) -> Benchmark:
    """A step after a prompt of so many tokens, twice; seconds of the second, of the slowest party."""
    layer = bench.layer_of(heads, settings, tokens)
    given = {"heads": list(heads), "settings": settings.as_json(), "tokens": tokens}
    job = Job(0, [], protocol, timeout, "", profile=True, parallel=parallel, layer=given)
    said, trace = launch(job, network_of(network))
    measured = [line["measured"] for lines in said for line in lines if "measured" in line]
    seconds = max(each["seconds"] for each in measured)
    runs, predicted = bench.RUNS, layer.predicted if protocol.lower() == "aby3" else None
    return Benchmark(
        layer,
        predicted,
        trace.bytes // runs,
        trace.messages / runs / len(said),
        seconds,
        measured[CLIENT]["error"],
        trace,
    )
