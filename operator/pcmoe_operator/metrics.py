"""The operator's own figures, for Prometheus. Every label is from a set that is known beforehand."""

import contextlib
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from importlib.metadata import version
from itertools import accumulate
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pcmoe_operator.answers import items, text_at
from pcmoe_operator.cluster import PATHS, ClusterError
from pcmoe_operator.diagnosis import EXIT_REASONS
from pcmoe_operator.health import Health
from pcmoe_operator.reasons import Reason
from pcmoe_operator.standing import State
from pcmoe_operator.tracing import NO_ANSWER, VERBS, Call
from pcmoe_operator.workqueue import WorkQueue
from pcmoe_operator.world import World

PREFIX = "pcmoe_operator"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the histogram's buckets."""
NEW, OTHER = "new", "other"
STATES = (NEW, "Invalid", *get_args(State), OTHER)
"""What a consortium's status may call it; anybody who may write a status can write any word there: `other`."""
ENDED_BY = (
    *sorted({reason.name for reason in EXIT_REASONS.values()}),
    *(
        each.name
        for each in (Reason.BackoffLimitExceeded, Reason.CrashLoop, Reason.JobFailed, Reason.NodeError)
    ),
    OTHER,
)
"""Why the status of a consortium that has failed may say that it has; `other`: any other word."""
ALL_VERBS = frozenset({"get", "list", "watch", *VERBS.values()})
SERVED = frozenset(path.rpartition("/")[2] for path in PATHS.values())
RESOURCES = SERVED | {f"{each}/status" for each in SERVED} | {"api", "apis", "openapi", "namespaces"}
CODES = frozenset({NO_ANSWER, *(str(int(status)) for status in HTTPStatus)})

Failure = Literal["api_conflict", "api_refused", "api_unavailable", "timeout", "bug"]
FAILURES: tuple[Failure, ...] = get_args(Failure)
"""Why a look at a consortium failed."""


def failure_of(error: Exception) -> Failure:
    """The reason for the failure of a look.

    `api_unavailable`: the API server did not answer, is overloaded or at fault; `timeout`: the look took too long.
    """
    if isinstance(error, TimeoutError):
        return "timeout"
    if not isinstance(error, ClusterError):
        return "bug"
    if error.status == HTTPStatus.CONFLICT:
        return "api_conflict"
    busy = error.status == HTTPStatus.TOO_MANY_REQUESTS
    return "api_unavailable" if busy or not 300 <= error.status < 500 else "api_refused"


class Metrics(Collector):
    """Counters that are told, and gauges that are read at each scrape."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._registry = CollectorRegistry()
        self.leading: Callable[[], bool] = lambda: False
        self.queue: WorkQueue | None = None
        self.world: World | None = None
        self.crd_missing: Callable[[], int] = lambda: 0
        self._failures: Counter[Failure] = Counter()
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._looks = [0] * (len(SECONDS) + 1)
        """By the bucket of how long they took; the last is for those that took longer than all bounds."""
        self._seconds = 0.0
        self._version = version("pcmoe")
        ProcessCollector(namespace=PREFIX, registry=self._registry)
        self._registry.register(self)

    def requested(self, call: Call, code: str) -> None:
        """A request was answered, or not."""
        verb, resource, code = (
            found if found in known else OTHER
            for found, known in ((call.verb, ALL_VERBS), (call.resource, RESOURCES), (code, CODES))
        )
        self._requests[verb, resource, code] += 1

    @contextlib.contextmanager
    def look(self) -> Iterator[None]:
        """Around one look at a consortium."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self._looks[bisect_left(SECONDS, seconds)] += 1
            self._seconds += seconds

    def failed(self, error: Exception) -> None:
        """A look has failed."""
        self._failures[failure_of(error)] += 1

    def page(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Every metric but those of the process, once."""
        yield _info("build_info", "The operator's version; always 1.", version=self._version)
        yield _gauge("leader", "Whether this process leads.", self.leading())
        yield from self._of_looks()
        yield _counters(
            "api_requests",
            "Requests to the API server by the code of the answer; none: there was no answer.",
            ("verb", "resource", "code"),
            self._requests.items(),
        )
        yield _gauge("crd_missing_fields", "Fields that the served CRD lacks; CRDTooOld.", self.crd_missing())
        queue = self.queue
        yield _gauge("queue_length", "Consortia that wait for a look or have one.", len(queue or ()))
        oldest = queue.oldest_seconds if queue else 0.0
        yield _gauge("queue_oldest_seconds", "How long the most overdue consortium waits.", oldest)
        yield _gauges(
            "consortia",
            "Consortia by the state in their status; new: none yet; other: a word this operator doesn't know.",
            ("state",),
            (((state,), count) for state, count in self._states().items()),
        )
        yield _gauges(
            "consortia_failed",
            "Consortia that have failed, by the reason in their status; other: a word this operator doesn't know.",
            ("reason",),
            (((reason,), count) for reason, count in self._ends().items()),
        )
        yield from self._of_watches()

    def _of_looks(self) -> Iterator[Metric]:
        looks = list(accumulate(self._looks))
        yield CounterMetricFamily(f"{PREFIX}_reconciles", "Looks at a consortium that have ended.", looks[-1])
        failures = (((reason,), self._failures[reason]) for reason in FAILURES)
        yield _counters("reconcile_errors", "Those that failed, by the reason.", ("reason",), failures)
        bounds = [*map(str, SECONDS), "+Inf"]
        yield HistogramMetricFamily(
            f"{PREFIX}_reconcile_duration_seconds",
            "How long a look takes.",
            buckets=list(zip(bounds, map(float, looks), strict=True)),
            sum_value=self._seconds,
        )

    def _of_watches(self) -> Iterator[Metric]:
        yield _gauges(
            "watch_age_seconds",
            "Seconds since a watch was opened last.",
            ("resource", "namespace"),
            self._health.ages().items(),
        )
        yield _counters(
            "watch_restarts",
            "Watches that had lost their place, so that all was listed anew.",
            ("resource",),
            (((resource,), count) for resource, count in self._health.restarts().items()),
        )

    def _states(self) -> Mapping[str, int]:
        found = dict.fromkeys(STATES, 0)
        for each in self.world.consortia.values() if self.world else ():
            state = (each.get("status") or {}).get("state") or NEW
            found[state if state in STATES else OTHER] += 1
        return found

    def _ends(self) -> Mapping[str, int]:
        """Failed consortia, counted as in `_states`."""
        found = dict.fromkeys(ENDED_BY, 0)
        for each in self.world.consortia.values() if self.world else ():
            status = each.get("status") or {}
            if status.get("state") == "Failed":
                found[_reason_of(status)] += 1
        return found


def _reason_of(status: Mapping[str, Any]) -> str:
    """Why a consortium has failed, in the one word of its status; anybody who may write one can write any there."""
    conditions = items(dict(status), "conditions")
    failed = (each for each in conditions if each.get("type") == "Failed" and each.get("status") == "True")
    reason = text_at(next(failed, {}), "reason")
    return reason if reason in ENDED_BY else OTHER


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, float(value))


def _gauges(
    name: str, text: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counters(
    name: str, text: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], float]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for values, value in sorted(samples):
        family.add_metric(values, value)
    return family


def _info(name: str, text: str, **labels: str) -> GaugeMetricFamily:
    return _gauges(name, text, tuple(labels), [(tuple(labels.values()), 1.0)])
