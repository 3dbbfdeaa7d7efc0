"""What the operator shows to Prometheus: every name has its prefix, every label is of a known set."""

import asyncio
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, get_args

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from pcmoe_operator.cluster import ClusterError
from pcmoe_operator.health import Health
from pcmoe_operator.metrics import ENDED_BY, FAILURES, STATES, Metrics, failure_of
from pcmoe_operator.reasons import Reason
from pcmoe_operator.standing import State
from pcmoe_operator.tracing import Call
from pcmoe_operator.workqueue import WorkQueue
from pcmoe_operator.world import World

WATCHES = [("pods", "one"), ("jobs", "one"), ("pods", "two")]


@pytest.fixture
def health() -> Health:
    return Health(30.0)


@pytest.fixture
def metrics(health: Health) -> Metrics:
    return Metrics(health)


def families(metrics: Metrics) -> Mapping[str, Metric]:
    """What a scrape finds, by name."""
    return {each.name: each for each in text_string_to_metric_families(metrics.page().decode())}


def values(metrics: Metrics, name: str) -> Mapping[tuple[str, ...], float]:
    """The samples of a metric by their labels' values, in the order of the labels' names."""
    samples = families(metrics)[f"pcmoe_operator_{name}"].samples
    return {tuple(value for _, value in sorted(each.labels.items())): each.value for each in samples}


def consortium(name: str, status: Any) -> dict[str, Any]:
    """As a watch tells of it."""
    metadata = {"name": name, "namespace": "here", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"kind": "PCMoEConsortium", "metadata": metadata, "spec": {}, "status": status}


def world_of(*states: Any) -> World:
    """Consortia whose status says so."""
    world = World(lambda _key: None)
    for number, state in enumerate(states):
        world.saw("ADDED", consortium(f"c{number}", state if state is None else {"state": state}))
    return world


def test_every_name_begins_with_the_operators_prefix_and_has_a_meaning(metrics: Metrics) -> None:
    found = families(metrics)
    assert [name for name in found if not name.startswith("pcmoe_operator_")] == []
    of_ours = [each for name, each in found.items() if not name.startswith("pcmoe_operator_process_")]
    assert all(each.documentation.endswith(".") for each in of_ours)


def test_it_says_its_version(metrics: Metrics) -> None:
    assert values(metrics, "build_info") == {(version("pcmoe"),): 1.0}


def test_all_states_are_shown_from_the_start_and_those_there_are_counted(metrics: Metrics) -> None:
    assert values(metrics, "consortia") == {(state,): 0.0 for state in STATES}
    metrics.world = world_of("Running", "Running", "Failed", None, "")
    shown = values(metrics, "consortia")
    assert shown["Running",] == 2 and shown["Failed",] == 1 and shown["new",] == 2
    assert len(shown) == len(STATES) and sum(shown.values()) == 5


def test_a_state_that_somebody_else_wrote_makes_no_new_series(metrics: Metrics) -> None:
    metrics.world = world_of('x"}\n', "running", 5, ["a"])
    assert values(metrics, "consortia")["other",] == 4
    assert len(values(metrics, "consortia")) == len(STATES)


def failed(reason: Any, condition: str = "Failed", truth: str = "True") -> dict[str, Any]:
    """The status of a consortium that has failed for a reason."""
    return {"state": "Failed", "conditions": [{"type": condition, "status": truth, "reason": reason}]}


def test_why_consortia_have_failed_is_shown_from_the_start_and_counted(metrics: Metrics) -> None:
    assert values(metrics, "consortia_failed") == {(reason,): 0.0 for reason in ENDED_BY}
    assert len(ENDED_BY) == len(set(ENDED_BY))
    assert set(ENDED_BY) - {"other"} <= set(Reason.__members__)
    world = metrics.world = world_of("Running", "Completed", None)
    going = {**failed("StorageFailed"), "state": "Running"}
    for number, status in enumerate(
        [failed("StorageFailed"), failed("StorageFailed"), failed("CrashLoop"), going]
    ):
        world.saw("ADDED", consortium(f"failed-{number}", status))
    shown = values(metrics, "consortia_failed")
    assert (shown["StorageFailed",], shown["CrashLoop",]) == (2.0, 1.0)
    assert sum(shown.values()) == values(metrics, "consortia")["Failed",] == 3


@pytest.mark.parametrize(
    "status",
    [
        failed('x"}\n'),
        failed(["a"]),
        failed(None),
        failed("Training"),
        failed("StorageFailed", truth="False"),
        failed("StorageFailed", condition="Ready"),
        {"state": "Failed"},
        {"state": "Failed", "conditions": "none"},
        {"state": "Failed", "conditions": [1, {}]},
    ],
)
def test_an_end_that_somebody_else_wrote_makes_no_new_series(
    status: dict[str, Any], metrics: Metrics
) -> None:
    world = metrics.world = World(lambda _key: None)
    world.saw("ADDED", consortium("one", status))
    shown = values(metrics, "consortia_failed")
    assert shown["other",] == sum(shown.values()) == 1
    assert len(shown) == len(ENDED_BY)


def test_every_state_that_a_status_can_have_is_known() -> None:
    assert set(STATES) == {"new", "Invalid", "other", *get_args(State)}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (409, "api_conflict"),
        (400, "api_refused"),
        (401, "api_refused"),
        (403, "api_refused"),
        (404, "api_refused"),
        (422, "api_refused"),
        (302, "api_refused"),
        (429, "api_unavailable"),
        (500, "api_unavailable"),
        (503, "api_unavailable"),
        (0, "api_unavailable"),
    ],
)
def test_a_failure_of_the_api_has_a_reason_by_its_code(status: int, reason: str) -> None:
    assert failure_of(ClusterError("PATCH /x", status, "words of the server")) == reason


def test_other_failures_are_a_look_that_took_too_long_or_a_fault_of_the_program() -> None:
    assert failure_of(TimeoutError()) == "timeout"
    assert failure_of(KeyError("anything")) == "bug"


def test_all_reasons_of_failures_are_shown_from_the_start(metrics: Metrics) -> None:
    assert values(metrics, "reconcile_errors") == {(reason,): 0.0 for reason in FAILURES}
    metrics.failed(ClusterError("PATCH /x", 409, "somebody was faster"))
    metrics.failed(KeyError("patient 17"))
    shown = values(metrics, "reconcile_errors")
    assert shown["api_conflict",] == 1 and shown["bug",] == 1 and sum(shown.values()) == 2
    assert b"patient" not in metrics.page()


def test_a_look_that_takes_too_long_is_counted_as_one_that_failed(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue ends it by cancelling it, which is no exception inside the look."""
    monkeypatch.setattr("pcmoe_operator.workqueue.LONGEST_WORK", 0.0)

    async def work() -> None:
        queue, ended = WorkQueue(), asyncio.Event()

        async def look(_key: object) -> float | None:
            with metrics.look():
                await asyncio.Event().wait()
            return None

        def failed(_key: object, error: Exception) -> float | None:
            metrics.failed(error)
            ended.set()
            return 100.0

        queue.add("one")
        worker = asyncio.create_task(queue.run(look, 1, failed))
        async with asyncio.timeout(5.0):
            await ended.wait()
        worker.cancel()

    asyncio.run(work())
    assert values(metrics, "reconcile_errors")["timeout",] == 1
    assert values(metrics, "reconciles") == {(): 1.0}


def test_looks_are_counted_and_timed_in_buckets_that_add_up(metrics: Metrics) -> None:
    for _ in range(3):
        with metrics.look():
            pass
    with pytest.raises(ValueError, match="no"), metrics.look():
        raise ValueError("no")
    samples = families(metrics)["pcmoe_operator_reconcile_duration_seconds"].samples
    buckets = [each.value for each in samples if each.name.endswith("_bucket")]
    assert buckets == sorted(buckets) and buckets[-1] == 4
    (count,) = (each.value for each in samples if each.name.endswith("_count"))
    (seconds,) = (each.value for each in samples if each.name.endswith("_sum"))
    assert count == 4 and seconds > 0
    assert values(metrics, "reconciles") == {(): 4.0}


def test_requests_are_counted_by_code_verb_and_resource(metrics: Metrics) -> None:
    applied = Call(verb="patch", resource="pcmoeconsortia/status", namespace="here")
    for code in ("200", "200", "none"):
        metrics.requested(applied, code)
    assert values(metrics, "api_requests") == {
        ("200", "pcmoeconsortia/status", "patch"): 2.0,
        ("none", "pcmoeconsortia/status", "patch"): 1.0,
    }


def test_a_request_or_an_answer_that_is_not_known_makes_no_new_series(metrics: Metrics) -> None:
    for number in range(700, 800):
        metrics.requested(Call(verb=f"v{number}", resource=f"r{number}", namespace=""), str(number))
    assert values(metrics, "api_requests") == {("other", "other", "other"): 100.0}


def test_watches_are_shown_with_their_age_and_how_often_they_lost_their_place(
    metrics: Metrics, health: Health
) -> None:
    assert values(metrics, "watch_restarts") == {} == values(metrics, "watch_age_seconds")
    health.expect(WATCHES)
    assert values(metrics, "watch_restarts") == {("pods",): 0.0, ("jobs",): 0.0}
    for watch in (*WATCHES, ("secrets", "one")):
        health.restarted(watch)
    assert values(metrics, "watch_restarts") == {("pods",): 2.0, ("jobs",): 1.0}
    assert set(values(metrics, "watch_age_seconds")) == {(space, kind) for kind, space in WATCHES}


def test_what_waits_is_shown(metrics: Metrics) -> None:
    assert values(metrics, "queue_length") == {(): 0.0} == values(metrics, "queue_oldest_seconds")
    now = 100.0
    metrics.queue = WorkQueue(clock=lambda: now)
    metrics.queue.add("a")
    metrics.queue.add("b", after=50.0)
    now = 107.0
    assert values(metrics, "queue_length") == {(): 2.0}
    assert values(metrics, "queue_oldest_seconds") == {(): 7.0}


def test_who_leads_and_what_the_definition_lacks_is_asked_at_each_scrape(metrics: Metrics) -> None:
    assert values(metrics, "leader") == {(): 0.0} == values(metrics, "crd_missing_fields")
    metrics.leading, metrics.crd_missing = (lambda: True), (lambda: 3)
    assert values(metrics, "leader") == {(): 1.0}
    assert values(metrics, "crd_missing_fields") == {(): 3.0}
