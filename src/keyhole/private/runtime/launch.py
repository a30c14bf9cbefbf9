"""All parties as processes of this machine, on links of its loopback, with a network between them or not."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from keyhole.private.network import LOOPBACK, Network
from keyhole.private.runtime.jobs import Job
from keyhole.private.runtime.links import ROLES, PartyError
from keyhole.private.runtime.protocols import protocol_of
from keyhole.private.runtime.proxy import between
from keyhole.private.runtime.trace import Trace, traced

_POLL = 0.05


class Finished(NamedTuple):
    """What all parties said, in order of rank, and the sum of what they logged."""

    said: list[list[dict[str, Any]]]
    trace: Trace


def launch(
    job: Job,
    network: Network = LOOPBACK,
    started: Callable[[list[subprocess.Popen[bytes]]], None] | None = None,
) -> Finished:
    """Start a process for each party, and wait for all of them.

    Args:
        job: of which rank, addresses and log are filled in for each.
        started: called with the processes when all of them are connected.

    Raises:
        PartyError: one of them failed, with what each said; the others are ended within twice the timeout.
    """
    count = protocol_of(job.protocol).parties
    ports = _free_ports(count + count * count)
    own, proxies = ports[:count], ports[count:]
    routes = {proxies[here * count + there]: own[there] for here in range(count) for there in range(count)}
    with tempfile.TemporaryDirectory() as logs, between(routes, network):
        jobs = []
        for rank in range(count):
            table = [
                own[there] if network == LOOPBACK or there == rank else proxies[rank * count + there]
                for there in range(count)
            ]
            addresses = [f"127.0.0.1:{port}" for port in table]
            jobs.append(replace(job, rank=rank, addresses=addresses, log=str(Path(logs) / f"{rank}.log")))
        processes = [_start(each, Path(logs)) for each in jobs]
        try:
            if started is not None and _connected(processes, Path(logs)):
                started(processes)
            _wait(processes, job.timeout)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        _check(processes, Path(logs))
        said = [_lines(Path(logs) / f"{rank}.out") for rank in range(count)]
        return Finished(said, traced(Path(each.log).read_text() for each in jobs))


def _start(job: Job, folder: Path) -> subprocess.Popen[bytes]:
    with (
        (folder / f"{job.rank}.in").open("w+b") as given,
        (folder / f"{job.rank}.out").open("wb") as out,
        (folder / f"{job.rank}.err").open("wb") as err,
    ):
        given.write(json.dumps(asdict(job)).encode())
        given.seek(0)
        command = [sys.executable, "-m", "keyhole.private.runtime.jobs"]
        return subprocess.Popen(command, stdin=given, stdout=out, stderr=err)


def _connected(processes: list[subprocess.Popen[bytes]], folder: Path) -> bool:
    """Wait until each process says so; False where one ended before."""
    while all(process.poll() is None for process in processes):
        if all(_lines(folder / f"{rank}.out", "connected") for rank in range(len(processes))):
            return True
        time.sleep(_POLL)
    return False


def _wait(processes: list[subprocess.Popen[bytes]], timeout: float) -> None:
    """Until all have ended; once one failed, the others have until twice the timeout to say so themselves."""
    deadline = None
    while any(process.poll() is None for process in processes):
        if deadline is None and any(process.poll() not in (None, 0) for process in processes):
            deadline = time.monotonic() + 2 * timeout
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(_POLL)


def _check(processes: list[subprocess.Popen[bytes]], folder: Path) -> None:
    if not any(process.returncode for process in processes):
        return
    reasons, killed = [], any((process.returncode or 0) < 0 for process in processes)
    for rank, process in enumerate(processes):
        said = _lines(folder / f"{rank}.err", wanted="error")
        if said:
            reasons.append(f"{ROLES[rank]}: {said[-1]['error']}")
        elif process.returncode:
            reasons.append(f"{ROLES[rank]}: {_end(process.returncode, killed)}")
    raise PartyError("; ".join(reasons))


def _end(code: int, killed: bool) -> str:
    """How a process without a message ended; `killed`: one of all was ended by a signal."""
    if code < 0:
        return f"ended by signal {-code} without a word"
    # SPU's links may end a process before Python can say why.
    how = "lost another party, exit code {}" if killed else "ended by exit code {} without a word"
    return how.format(code)


def _lines(path: Path, wanted: str = "") -> list[dict[str, Any]]:
    """Lines that are JSON objects; libraries may write others."""
    lines = path.read_text(errors="replace").splitlines()
    objects = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return [line for line in objects if wanted in line or not wanted]


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports
