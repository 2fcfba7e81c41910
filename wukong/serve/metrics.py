"""What Prometheus reads of a server: requests, their seconds, and how many pictures are searched."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.06, 0.1, 0.2, 0.3, 0.6, 1.0, 3.0, 10.0)


class Metrics:
    """The metrics of one application; several in one process do not share them.

    Args:
        pictures: how many pictures the index has.
    """

    def __init__(self, pictures: int) -> None:
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
        gauge = Gauge("wukong_serve_index_pictures", "Pictures that are searched.", registry=self._registry)
        gauge.set(pictures)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count a request; ``route`` is a template such as ``/api/search``, so that there are few."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)
