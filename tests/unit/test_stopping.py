"""Whatever is wrong with a consortium, and whatever changed in it: what isn't to run is stopped, and that is said."""

import asyncio
import json
from typing import Any

import pytest
from tests.unit.clustered import here
from tests.unit.one_consortium import JOBS, KEY, NAME, NAMES, OURS, PODS, Api, applied, running

from pcmoe_operator.objects.names import of_attempt
from pcmoe_operator.remote.live import FAILED
from pcmoe_operator.remote.switching import settled

BERLIN, LYON = (of_attempt(NAME, name, 1) for name in NAMES)
ELSEWHERE = [{"name": "lyon", "endpoint": "lyon.example:8443", "caBundle": "-----BEGIN CERTIFICATE-----"}]
"""Where lyon is that doesn't run here any more."""
SUSPENDED = ("True", "SuspendRequested")


def trains(**spec: Any) -> Api:
    """One whose pods all run."""
    api = applied(**spec)
    api.settle()
    assert set(api.jobs.values()) == {False} and len(api.pods) == 3
    return api


def answers(**more: Any) -> bytes:
    """What a node says of itself."""
    said = {"phase": "TRAINING", "view": 1, "round": 1, "rounds": 2, "step": 4, "committed": 1}
    return json.dumps(said | more).encode()


def test_a_participant_that_is_taken_out_stops_and_one_that_is_put_back_goes_on() -> None:
    api = trains()
    api.change(local=here(NAMES[:1]), roster=ELSEWHERE)
    api.settle()
    assert api.jobs == {BERLIN: False, LYON: True} and f"{LYON}-x" not in api.pods
    api.change(local=here(NAMES))
    api.settle()
    assert api.jobs == {BERLIN: False, LYON: False} and f"{LYON}-x" in api.pods


def test_none_is_suspended_while_one_that_was_taken_out_has_a_pod() -> None:
    api = trains()
    api.change(local=here(NAMES[:1]), roster=ELSEWHERE, suspend=True)
    api.look()
    assert api.jobs == {BERLIN: True, LYON: True}
    api.take(f"{PODS}/{BERLIN}-x")
    api.look()
    assert api.condition("Suspended") == ("False", "Suspending")
    assert "lyon" in next(each["message"] for each in api.status["conditions"] if each["type"] == "Suspended")
    api.settle()
    assert api.condition("Suspended") == SUSPENDED and api.pods == []


def test_none_is_suspended_while_a_pod_of_another_attempt_is_there() -> None:
    api = trains()
    api.change(attempt=2, suspend=True)
    api.look()
    api.look()
    assert api.condition("Suspended") == ("False", "Suspending")
    api.settle()
    assert api.condition("Suspended") == SUSPENDED


def test_a_manifest_that_breaks_rules_is_suspended_all_the_same_and_says_so() -> None:
    api = trains()
    broken = [{"name": name} for name in NAMES]
    api.change(local=broken)
    api.settle()
    assert api.jobs == {BERLIN: False, LYON: False}, "what runs goes on"
    assert api.condition("Suspended") == ("False", "NotSuspended")
    api.change(local=broken, suspend=True)
    api.look()
    assert api.jobs == {BERLIN: True, LYON: True}
    assert api.condition("Suspended") == ("False", "Suspending")
    api.settle()
    assert api.status["state"] == "Invalid" and api.condition("Accepted") == ("False", "InvalidSpec")
    assert api.condition("Suspended") == SUSPENDED
    for kind in ("Scheduled", "Ready", "Progressing"):
        assert api.condition(kind) == ("False", "SuspendRequested")
    assert "ready" not in api.status
    assert [(each["name"], each["state"]) for each in api.status["participants"]] == [
        (name, "Suspended") for name in NAMES
    ]


def test_events_that_cannot_be_listed_keep_nothing_from_being_done() -> None:
    api = trains()
    api.take(f"{PODS}/{BERLIN}-x")
    job = api.store[f"{JOBS}/{BERLIN}"]
    api.put(f"{JOBS}/{BERLIN}", {**job, "status": {"startTime": "2026-07-01T00:00:00Z"}})
    api.deaf = True
    api.look()
    assert any(each.endswith("/events") for each in api.calls), "a Job without a pod: only Events tell why"
    assert api.condition("Ready")[0] == "False" and api.status["ready"] == "1/2"


def test_whoever_resumes_one_that_breaks_rules_does_not_wait_for_it() -> None:
    api = trains()
    api.change(local=[{"name": name} for name in NAMES], suspend=True)
    api.settle()
    api.change(suspend=None)
    api.settle()
    generation = api.store[OURS]["metadata"]["generation"]
    assert settled(generation, suspend=False)(api.store[OURS]) == FAILED
    assert settled(generation + 1, suspend=False)(api.store[OURS]) is None, "not looked at yet"


def test_a_failed_pod_that_is_kept_keeps_none_from_being_suspended() -> None:
    api = trains()
    there = api.store[f"{PODS}/{BERLIN}-x"]
    old = {**there["metadata"], "name": f"{BERLIN}-old", "uid": "old"}
    api.put(f"{PODS}/{BERLIN}-old", {**there, "metadata": old, "status": {"phase": "Failed"}})
    api.change(suspend=True)
    api.settle()
    assert api.pods == [f"{BERLIN}-old"] and api.condition("Suspended") == SUSPENDED


def test_none_is_suspended_while_a_job_may_still_make_a_pod() -> None:
    api = trains()
    api.refuses = {f"{JOBS}/{BERLIN}"}
    api.take(f"{PODS}/{BERLIN}-x")
    api.change(suspend=True)
    api.look()
    api.take(f"{PODS}/{LYON}-x")
    api.look()
    assert api.pods == [f"{NAME}.coordinator-x"] and api.condition("Suspended") == ("False", "Suspending")


@pytest.mark.parametrize("trouble", ["a failure", "a manifest that breaks rules"])
def test_what_nobody_may_suspend_is_told_and_tried_again_whatever_else_is_wrong(trouble: str) -> None:
    api = trains()
    api.refuses = {f"{JOBS}/{BERLIN}"}
    if trouble == "a failure":
        end = {"type": "Failed", "status": "True", "reason": "JobFailed", "message": "as it was"}
        others = [each for each in api.status["conditions"] if each["type"] != "Failed"]
        status = {**api.status, "state": "Failed", "conditions": [*others, end]}
        api.put(OURS, {**api.store[OURS], "status": status})
    else:
        api.change(local=[{"name": name} for name in NAMES], suspend=True)
    reconciler = api.reconciler()
    pauses = [asyncio.run(reconciler.reconcile(KEY)) for _ in range(3)]
    assert pauses[-1] == 60.0
    told = [each["type"] for each in api.status["conditions"] if "a policy denies it" in each["message"]]
    assert told == (["Scheduled", "Ready", "Progressing"] if trouble == "a failure" else ["Suspended"])
    assert api.jobs == {BERLIN: False, LYON: True}


def test_a_job_that_nobody_may_suspend_keeps_no_other_from_it_and_is_told() -> None:
    api = trains()
    api.refuses = {f"{JOBS}/{BERLIN}"}
    api.change(suspend=True)
    api.settle()
    assert api.jobs == {BERLIN: False, LYON: True}
    [told] = [each for each in api.status["conditions"] if each["type"] == "Progressing"]
    assert f"Job {BERLIN}: a policy denies it" in told["message"]
    before = len(api.calls)
    reconciler = api.reconciler()
    for _ in range(2):
        asyncio.run(reconciler.reconcile(KEY))
    asked = [each for each in api.calls[before:] if each == f"PATCH {JOBS}/{BERLIN}"]
    assert len(asked) == 1, "it is not tried again at every look"
    api.refuses = set()
    api.settle()
    assert api.jobs == {BERLIN: True, LYON: True}


def test_one_that_is_another_operator_s_is_left_alone() -> None:
    api = applied(managedBy="example.com/other")
    api.look()
    api.change(suspend=True)
    api.look()
    assert api.calls == []


@pytest.mark.parametrize("end", ["Completed", "Failed"])
def test_an_end_outlives_an_attempt_that_is_set_back(end: str) -> None:
    api = trains(attempt=2)
    word = {"type": end, "status": "True", "reason": "Any", "message": "as it was"}
    others = [each for each in api.status["conditions"] if each["type"] != end]
    status = {**api.status, "state": end, "conditions": [*others, word]}
    api.put(OURS, {**api.store[OURS], "status": status})
    api.change(attempt=1)
    api.settle()
    assert api.condition(end) == ("True", "Any") and api.status["state"] == end
    assert set(api.jobs) == {of_attempt(NAME, name, 2) for name in NAMES}, (
        "none is made for the first attempt"
    )


def test_what_is_left_to_say_at_an_end_is_said_when_its_time_has_come() -> None:
    api = trains()

    async def first(_url: str) -> bytes | None:
        return answers(heldOutLoss=2.5)

    async def second(url: str) -> bytes | None:
        if url == "http://10.0.0.1:9400/status":
            return json.dumps({"state": "RUNNING", "view": 1, "round": 2}).encode()
        return answers(heldOutLoss=2.5)

    api.look(first)
    api.look(second)
    assert api.status["state"] == "Completed" and api.status["loss"] == "2.50"
    for name in NAMES:
        left = answers(heldOutLoss=2.0, round=2, committed=2, phase="DONE").decode()
        ended = {"name": "node", "state": {"terminated": {"exitCode": 0, "message": left}}, "restartCount": 0}
        api.pod(name, {**running("10.0.1.1"), "phase": "Succeeded", "containerStatuses": [ended]}, "gpu")
    reconciler = api.reconciler()
    assert asyncio.run(reconciler.reconcile(KEY)) == 5.0 and api.status["loss"] == "2.50"
    api.put(OURS, {**api.store[OURS], "status": {**api.status, "lastUpdateTime": "2026-07-01T00:00:00Z"}})
    assert asyncio.run(reconciler.reconcile(KEY)) is None and api.status["loss"] == "2.00"
