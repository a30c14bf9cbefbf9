"""`/metrics`, in the form of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from keyhole.serving.http.backend import Scheduler

_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts requests, and reads the state of a scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Scheduled(scheduler))
        self._requests = Counter(
            "keyhole_http_requests",
            "HTTP requests",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "keyhole_http_request_seconds",
            "Seconds until an answer had ended",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first = Histogram(
            "keyhole_first_token_seconds",
            "Seconds until the first piece of an answer",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float, first: float | None) -> None:
        """Count a request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if first is not None:
            self._first.labels(route).observe(first)

    async def show(self, _: Request) -> Response:
        return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class _Scheduled(Collector):
    """The state of a scheduler as it is when it is asked for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def describe(self) -> Iterator[Metric]:
        """Nothing: the state is not asked for before it is wanted."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        state = self._scheduler.state()
        gauges = {
            "waiting": "Requests in the queue",
            "running": "Requests that are read or decoded",
            "reading": "Requests whose prompt is read",
            "held_bytes": "Bytes that running requests are admitted with",
            "memory": "Bytes that they may hold together",
            "slots": "Requests that may run at once",
            "queue": "Requests that may wait",
        }
        for name, help_ in gauges.items():
            yield GaugeMetricFamily(f"keyhole_{name}", help_, value=getattr(state, name))
        yield CounterMetricFamily("keyhole_refused", "Requests beyond the queue", value=state.refused)
        yield _counters("finished", "Requests by how they ended", "end", state.finished)
        yield _counters("tokens", "Tokens by what became of them", "kind", state.tokens)


def _counters(name: str, help_: str, label: str, values: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"keyhole_{name}", help_, labels=[label])
    for word, value in values.items():
        family.add_metric([word], value)
    return family
