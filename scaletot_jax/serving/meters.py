"""What Prometheus is told: requests, rows, batches, the queue, reloads. Nothing of what a row holds."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Meters:
    """The counters of one server; each server has a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "scaletot_requests", "Answers by path and status", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "scaletot_request_seconds", "From the request's head to the last byte of its answer", ["path"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.refused = Counter("scaletot_refused", "Requests refused by a limit", ["limit"], registry=registry)
        self.rows = Counter("scaletot_rows", "Rows predicted", registry=registry)
        self.batch_rows = Histogram("scaletot_batch_rows", "Rows of a batch", buckets=_ROWS, registry=registry)
        self.batch_seconds = Histogram(
            "scaletot_batch_seconds", "Encoding and computing of a batch", buckets=_SECONDS, registry=registry
        )
        self.queued = Gauge("scaletot_queued_rows", "Rows that wait for a batch", registry=registry)
        self.reloads = Counter("scaletot_reloads", "New exports by what became of them", ["outcome"], registry=registry)
        self.model = Gauge("scaletot_model_info", "The fingerprint that is served", ["fingerprint"], registry=registry)

    def serving(self, fingerprint: str) -> None:
        self.model.clear()
        self.model.labels(fingerprint).set(1)

    def text(self) -> bytes:
        return generate_latest(self.registry)
