"""What SPU logs of a program: bytes, messages and seconds by operation, and what it opened."""

from __future__ import annotations

# pyright: reportMissingImports=false
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from spu import libspu

_OPERATION = re.compile(
    r"- (?P<name>[\w.:() ]+), executed (?P<runs>\d+) times, duration (?P<seconds>[\d.e+-]+)s, "
    r"send bytes (?P<bytes>\d+) recv bytes \d+, send actions (?P<messages>\d+)"
)
_TOTAL = re.compile(r"Link details: total send bytes (\d+), recv bytes \d+, send actions (\d+)")
_OPENING = re.compile(r"(^|_)(reveal\w*|[abvs]2p|[abs]2v)(_|$)")


class Spent(NamedTuple):
    """Of one operation, summed over the parties that logged.

    Attributes:
        seconds: the sum, so three times those of a clock for three parties.
    """

    runs: int = 0
    seconds: float = 0.0
    bytes: int = 0
    messages: int = 0

    def __add__(self, other: tuple[float, ...]) -> Spent:  # pyright: ignore[reportIncompatibleMethodOverride]
        runs, seconds, sent, messages = other
        total = self.bytes + int(sent), self.messages + int(messages)
        return Spent(self.runs + int(runs), self.seconds + seconds, *total)


class Trace(NamedTuple):
    """Of one or several parties.

    Attributes:
        operations: by the names of SPU's instructions.
        opened: kernels that make a secret value public, by name and how often they ran.
        bytes: sent over all links.
        messages: sent, in all.
    """

    operations: dict[str, Spent]
    opened: dict[str, int]
    bytes: int
    messages: int


def log_to(path: Path) -> None:
    """Let this process's SPU log to a file, and not to the terminal."""
    options = libspu.logging.LogOptions()
    options.enable_console_logger, options.system_log_path = False, str(path)
    libspu.logging.setup_logging(options)


def traced(texts: Iterable[str]) -> Trace:
    """The sums of what parties logged with `profile`."""
    operations: defaultdict[str, Spent] = defaultdict(Spent)
    opened: defaultdict[str, int] = defaultdict(int)
    sent = messages = 0
    for text in texts:
        for found in _OPERATION.finditer(text):
            name, runs = found["name"], int(found["runs"])
            if name.startswith("pphlo."):
                spent = Spent(runs, float(found["seconds"]), int(found["bytes"]), int(found["messages"]))
                operations[name.removeprefix("pphlo.")] += spent
            elif _OPENING.search(name):
                opened[name] += runs
        for found in _TOTAL.finditer(text):
            sent, messages = sent + int(found[1]), messages + int(found[2])
    return Trace(dict(operations), dict(opened), sent, messages)
