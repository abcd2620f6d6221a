"""What a service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Of one service. Labels are names of blocks and codes alone, so that nobody can make many of them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "interfuse_serve_requests",
            "Answers by block and code; ok: no error.",
            ["block", "code"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "interfuse_serve_seconds",
            "From the head of a request to the end of its answer.",
            ["block"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.rows = Counter("interfuse_serve_rows", "Samples that were answered.", ["block"], registry=self.registry)
        self.bytes = Counter(
            "interfuse_serve_bytes",
            "Of bodies, by block and direction.",
            ["block", "direction"],
            registry=self.registry,
        )
        self.batches = Histogram(
            "interfuse_serve_batch_rows",
            "Samples of one computation.",
            ["block"],
            buckets=_ROWS,
            registry=self.registry,
        )
        self.waiting = Gauge("interfuse_serve_waiting", "Requests that wait.", ["block"], registry=self.registry)
        self.good = Gauge("interfuse_serve_good", "1: the block may answer.", ["block"], registry=self.registry)
        self.underway = Gauge("interfuse_serve_underway", "Requests under way.", registry=self.registry)
        self.memory = Gauge("interfuse_serve_body_bytes", "Held now, of all bodies.", registry=self.registry)
        self.unreadable = Counter(
            "interfuse_serve_unreadable", "Looks at a registry or a file of keys that failed.", registry=self.registry
        )

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
