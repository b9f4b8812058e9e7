"""What a model service tells about itself, in the form that Prometheus reads."""

from __future__ import annotations

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)  # seconds
CONFIDENCE = tuple(np.round(np.arange(0.2, 1.01, 0.1), 1))


class ServiceMetrics:
    """Latency, queue, batches, answers and confidences, each in a registry of its own.

    Prometheus fetches `text` every few seconds and keeps the history. Labels are few on purpose:
    each combination of their values is a time series, so a user's name never is a label.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.latency = Histogram(
            "request_seconds", "From the first byte to the answer", ["version"],
            buckets=LATENCY, registry=registry,
        )  # fmt: skip
        self.queue = Gauge("queue_depth", "Requests that wait for a worker", registry=registry)
        self.batches = Histogram(
            "batch_size", "Pictures in a call of the model",
            buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry,
        )  # fmt: skip
        self.answers = Counter(
            "answers", "Answers by class", ["label", "version"], registry=registry
        )
        self.confidence = Histogram(
            "confidence", "Largest probability of an answer", ["version"],
            buckets=CONFIDENCE, registry=registry,
        )  # fmt: skip
        self.failures = Counter("failures", "Requests without an answer", registry=registry)
        self.live = Gauge(
            "model_live", "1 for the version that answers", ["version"], registry=registry
        )

    def goes_live(self, version: str) -> None:
        """Mark ``version`` as the one that answers, and no other."""
        self.live.clear()
        self.live.labels(version).set(1)

    def observe(
        self, probabilities: np.ndarray, classes: tuple[str, ...], version: str, seconds: float
    ) -> None:
        """Count one call of the model: probabilities (n, classes) that took ``seconds``."""
        self.latency.labels(version).observe(seconds)
        self.batches.observe(len(probabilities))
        for row in probabilities:
            best = int(row.argmax())
            self.answers.labels(classes[best], version).inc()
            self.confidence.labels(version).observe(float(row[best]))

    def text(self) -> str:
        """All metrics in Prometheus' text format: what GET /metrics answers."""
        return generate_latest(self.registry).decode()

    def value(self, name: str, **labels: str) -> float:
        """One sample, such as ``value("answers_total", label="cat", version="1")``; else 0."""
        return self.registry.get_sample_value(name, labels) or 0.0


def histogram_quantile(q: float, bounds: np.ndarray, counts: np.ndarray) -> float:
    """The q quantile that a histogram allows to guess, as PromQL's function of this name does.

    Inside a bucket the values are taken as spread evenly; in the last, open one the answer is its
    lower bound. So the answer is as sharp as the buckets are, and no sharper.

    Args:
        bounds: upper bounds (n,) of the buckets, the last one infinite.
        counts: cumulative (n,): how many values were at most each bound.
    """
    bounds, counts = np.asarray(bounds, float), np.asarray(counts, float)
    if not len(counts) or counts[-1] == 0:
        return float("nan")
    wanted = q * counts[-1]
    place = int(np.searchsorted(counts, wanted))
    if np.isinf(bounds[place]):
        return float(bounds[place - 1]) if place else float("nan")
    low, before = (bounds[place - 1], counts[place - 1]) if place else (0.0, 0.0)
    return float(low + (bounds[place] - low) * (wanted - before) / (counts[place] - before))
