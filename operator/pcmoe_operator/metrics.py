"""The operator's own figures, for Prometheus."""

import contextlib
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pcmoe_operator.health import Health
from pcmoe_operator.tracing import Call
from pcmoe_operator.workqueue import WorkQueue
from pcmoe_operator.world import World

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics(Collector):
    """Counters that are told, and gauges that are read at each scrape."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._registry = CollectorRegistry()
        self.leading: Callable[[], bool] = lambda: False
        self.queue: WorkQueue | None = None
        self.world: World | None = None
        self.crd_missing: Callable[[], int] = lambda: 0
        self._looks = Counter(
            "pcmoe_operator_reconciles", "Looks at a consortium that have ended.", registry=self._registry
        )
        self._failed = Counter(
            "pcmoe_operator_reconcile_errors", "Those that failed.", registry=self._registry
        )
        self._seconds = Histogram(
            "pcmoe_operator_reconcile_duration_seconds",
            "How long a look takes.",
            registry=self._registry,
            buckets=SECONDS,
        )
        self._requests = Counter(
            "pcmoe_operator_api_requests",
            "Requests to the API server by the code of the answer; none: there was no answer.",
            ["verb", "resource", "code"],
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def requested(self, call: Call, code: str) -> None:
        """A request was answered, or not."""
        self._requests.labels(call.verb, call.resource, code).inc()

    @contextlib.contextmanager
    def look(self) -> Iterator[None]:
        """Around one look at a consortium."""
        began = time.monotonic()
        try:
            yield
        except Exception:
            self._failed.inc()
            raise
        finally:
            self._looks.inc()
            self._seconds.observe(time.monotonic() - began)

    def page(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Every gauge, once."""
        yield _gauge("leader", "Whether this process leads.", self.leading())
        yield _gauge("crd_missing_fields", "Fields that the served CRD lacks; CRDTooOld.", self.crd_missing())
        queue = self.queue
        yield _gauge("queue_length", "Consortia that wait for a look or have one.", len(queue or ()))
        oldest = queue.oldest_seconds if queue else 0.0
        yield _gauge("queue_oldest_seconds", "How long the most overdue consortium waits.", oldest)
        name, text = "pcmoe_operator_consortia", "Consortia by the state in their status; new: none yet."
        consortia = GaugeMetricFamily(name, text, labels=["state"])
        for state, count in sorted(self._states().items()):
            consortia.add_metric([state], count)
        yield consortia
        name, text = "pcmoe_operator_watch_age_seconds", "Seconds since a watch was opened last."
        ages = GaugeMetricFamily(name, text, labels=["resource", "namespace"])
        for watch, age in sorted(self._health.ages().items()):
            ages.add_metric(watch, age)
        yield ages

    def _states(self) -> Tally[str]:
        known = self.world.consortia.values() if self.world else ()
        return Tally(str((each.get("status") or {}).get("state") or "new") for each in known)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pcmoe_operator_{name}", text, float(value))
