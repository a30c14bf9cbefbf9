"""Networks between the parties, and how long a step takes on one by what it sends."""

from __future__ import annotations

import math
from typing import NamedTuple

from keyhole.private.rates import Sent
from keyhole.private.settings import SettingsError

_PARTIES = 3
_MESSAGE = 0.0005  # seconds that a party needs to answer a message
_COMPUTED = 40e-9  # seconds of computing for each byte that is sent, on two cores for three parties


class Network(NamedTuple):
    """Seconds one way, and bits a second."""

    delay: float
    rate: float

    def seconds(self, sent: Sent) -> float:
        """About how long it takes: messages one after another, a third of the bytes by each party."""
        carried = 8 * sent.bytes / _PARTIES / self.rate
        return sent.messages * (self.delay + _MESSAGE) + carried + sent.bytes * _COMPUTED


LOOPBACK = Network(0.0, math.inf)
NETWORKS = {"loopback": LOOPBACK, "lan": Network(0.0004, 3e9), "wan": Network(0.010, 400e6)}


def network_of(text: str) -> Network:
    """By its name, or as `MILLISECONDS,MEGABITS`: the delay one way, and the rate.

    Raises:
        SettingsError: it is neither.
    """
    if text in NETWORKS:
        return NETWORKS[text]
    try:
        delay, rate = (float(part) for part in text.split(","))
    except ValueError:
        delay = rate = math.nan
    if not (0 <= delay <= 10_000 and 0 < rate <= 1e6):
        raise SettingsError(
            f"network {text!r} is neither {', '.join(NETWORKS)} nor MILLISECONDS,MEGABITS, as in 10,400; "
            "the delay one way is at most 10000, the rate at most 1000000"
        )
    return Network(delay / 1e3, rate * 1e6)
