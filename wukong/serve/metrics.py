"""What operators see of a server: requests and their seconds, memory, and the parts of the index and their state."""

import math
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wukong.serve.service import Service

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.06, 0.1, 0.2, 0.3, 0.6, 1.0, 3.0, 10.0)
QUANTILES = (0.5, 0.95, 0.99)
RECENT = 1_000
"""Requests of each route of which the quantiles are."""
_OWN, _MAPPED = ("RssAnon", "RssShmem"), ("RssFile",)
"""Fields of Linux's ``/proc/self/status``, in KiB (proc_pid_status(5))."""


class Metrics(Collector):
    """The metrics of one server; several in one process do not share them. They outlive a version of the index."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "wukong_serve_requests", "Requests by route and HTTP status.", ("route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "wukong_serve_seconds",
            "Seconds from a request to the end of its answer, by route.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._service: Service | None = None
        self.loaded = time.time()
        self._registry.register(self)

    def serve(self, service: Service) -> None:
        """Tell of this index from now on."""
        self._service, self.loaded = service, time.time()

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count a request; ``route`` is a template such as ``/api/search``, so that there are few."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._recent[route].append(seconds)

    async def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        if self._service:
            await self._service.router.describe(again=True)
        return generate_latest(self._registry)

    def quantiles(self) -> Mapping[str, Mapping[float, float]]:
        """Return by route the seconds within which so many of the last requests were answered."""
        found = {}
        for route, recent in sorted(self._recent.items()):
            ranked = sorted(recent)
            found[route] = {each: ranked[math.ceil(each * len(ranked)) - 1] for each in QUANTILES}
        return found

    def collect(self) -> Iterator[Metric]:
        """Give what is read at this moment."""
        pictures = self._service.pictures if self._service else 0
        yield GaugeMetricFamily("wukong_serve_index_pictures", "Pictures that are searched.", pictures)
        loaded = "When the index that is searched was loaded, in seconds since 1970."
        yield GaugeMetricFamily("wukong_serve_index_loaded_timestamp_seconds", loaded, self.loaded)
        help_text = f"Seconds within which a share of the last {RECENT} requests was answered, by route."
        latency = GaugeMetricFamily("wukong_serve_latency_seconds", help_text, labels=("route", "quantile"))
        for route, each in self.quantiles().items():
            for quantile, seconds in each.items():
                latency.add_metric((route, f"{quantile:g}"), seconds)
        yield latency
        help_text = "Memory that is resident: of mapped files, which can be dropped, and the server's own."
        memory = GaugeMetricFamily("wukong_serve_memory_bytes", help_text, labels=("kind",))
        for kind, size in memory_bytes().items():
            memory.add_metric((kind,), size)
        yield memory
        if self._service:
            yield from _of_index(self._service)


def _of_index(service: Service) -> Iterator[Metric]:
    if (recall := service.recall) is not None:
        help_text = "Share of the exact answers that a search finds of the questions that are kept with the index."
        yield GaugeMetricFamily("wukong_serve_index_recall", help_text, recall)
    up = GaugeMetricFamily("wukong_serve_shard_up", "Whether a shard of the index answers.", labels=("shard",))
    pictures = GaugeMetricFamily("wukong_serve_shard_pictures", "Pictures of a shard.", labels=("shard",))
    seconds = GaugeMetricFamily("wukong_serve_shard_seconds", "Recent seconds of its searches.", labels=("shard",))
    failures = CounterMetricFamily("wukong_serve_shard_failures", "Answers that it did not give.", labels=("shard",))
    for number, state in enumerate(service.router.states, 1):
        name = (str(number),)
        up.add_metric(name, float(not state.reason))
        failures.add_metric(name, state.failures)
        if state.description:
            pictures.add_metric(name, state.description.pictures)
        if state.seconds is not None:
            seconds.add_metric(name, state.seconds)
    yield from (up, pictures, seconds, failures)


def memory_bytes() -> Mapping[str, int]:
    """Return the resident memory of this process: ``own``, and ``mapped`` from files; empty but on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    lines = (line.split() for line in status.read_text(encoding="ascii").splitlines())
    kibibytes = {words[0].rstrip(":"): int(words[1]) for words in lines if words and words[0].startswith("Rss")}
    return {
        kind: 1024 * sum(kibibytes.get(field, 0) for field in fields)
        for kind, fields in (("own", _OWN), ("mapped", _MAPPED))
    }
