"""What had a name before is not what has it now: consortia, Jobs and pods that come after each other."""

import asyncio
import json
from unittest.mock import patch

import pytest
from tests.unit.clustered import here
from tests.unit.one_consortium import JOBS, KEY, NAME, NAMES, OURS, PODS, Api, applied, running

from pcmoe_operator.cluster import ClusterError
from pcmoe_operator.objects.names import of_attempt

BERLIN, LYON = (of_attempt(NAME, name, 1) for name in NAMES)
FAILED = [{"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "exit code 66"}]


def trains() -> Api:
    """One whose pods all run."""
    api = applied()
    api.settle()
    return api


def again(api: Api) -> None:
    """The consortium is deleted and applied again, before anybody has collected what it owned."""
    raw = api.store[OURS]
    api.take(OURS)
    api.put(OURS, {**raw, "metadata": {**raw["metadata"], "uid": "2"}, "status": {}})


def test_the_end_of_one_is_not_its_successor_s() -> None:
    api = trains()
    job = api.store[f"{JOBS}/{BERLIN}"]
    api.put(f"{JOBS}/{BERLIN}", {**job, "status": {"conditions": FAILED}})

    async def finished(_url: str) -> bytes | None:
        return json.dumps({"state": "RUNNING", "round": 2, "committed": 2, "phase": "DONE"}).encode()

    again(api)
    api.look(finished)
    assert api.status["state"] == "Pending" and api.condition("Failed")[0] == "False"
    assert api.status["round"] == "0/2"


def test_a_successor_s_jobs_are_made_when_those_before_and_their_pods_are_gone() -> None:
    api = trains()
    again(api)
    reconciler, before = api.reconciler(), len(api.calls)

    def look() -> set[str]:
        asyncio.run(reconciler.reconcile(KEY))
        paths = [path for path in api.store if path.startswith(JOBS)]
        return {path for path in paths if api.store[path]["metadata"]["ownerReferences"][0]["uid"] == "2"}

    assert look() == set() and f"POST {JOBS}" not in api.calls[before:]
    api.take(f"{JOBS}/{BERLIN}")
    assert look() == set(), "its pod is still there"
    api.take(f"{PODS}/{BERLIN}-x")
    assert look() == {f"{JOBS}/{BERLIN}"}
    api.take(f"{PODS}/{LYON}-x")
    assert look() == {f"{JOBS}/{BERLIN}"}, "the Job is still there, and would make another pod"
    api.take(f"{JOBS}/{LYON}")
    assert look() == {f"{JOBS}/{BERLIN}", f"{JOBS}/{LYON}"}


def test_the_coordinator_of_one_goes_before_there_is_its_successor_s() -> None:
    api = trains()
    coordinator = f"{NAME}.coordinator-x"
    before = api.store[f"{PODS}/{coordinator}"]["metadata"]["labels"]["pcmoe.dev/consortium-uid"]
    again(api)
    api.look()
    api.control()
    assert coordinator not in api.pods
    api.settle()
    after = api.store[f"{PODS}/{coordinator}"]["metadata"]["labels"]["pcmoe.dev/consortium-uid"]
    assert (before, after) == ("1", "2")


def test_a_job_that_left_its_pod_behind_is_made_again_when_that_is_gone() -> None:
    api = trains()
    api.take(f"{JOBS}/{BERLIN}")
    pod = api.store[f"{PODS}/{BERLIN}-x"]
    orphan = {key: value for key, value in pod["metadata"].items() if key != "ownerReferences"}
    api.put(f"{PODS}/{BERLIN}-x", {**pod, "metadata": orphan})  # as --cascade=orphan does
    api.look()
    assert BERLIN not in api.jobs
    api.take(f"{PODS}/{BERLIN}-x")
    api.look()
    assert api.jobs[BERLIN] is False


def test_a_job_that_was_deleted_is_made_again_when_its_pod_is_gone() -> None:
    api = trains()
    api.take(f"{JOBS}/{BERLIN}")
    api.look()
    assert BERLIN not in api.jobs, "two pods would write to one checkpoint"
    api.take(f"{PODS}/{BERLIN}-x")
    api.look()
    assert api.jobs[BERLIN] is False


def test_what_is_said_of_one_is_not_said_of_its_successor() -> None:
    api = trains()

    async def meanwhile(_url: str) -> bytes | None:
        api.store[OURS]["metadata"]["uid"] = "2"
        return json.dumps({"state": "RUNNING", "round": 2, "committed": 2, "phase": "DONE"}).encode()

    with pytest.raises(ClusterError, match="another uid"):
        api.look(meanwhile)


def test_nothing_is_kept_of_one_that_is_deleted_while_it_is_looked_at() -> None:
    api = trains()

    async def meanwhile(_url: str) -> bytes | None:
        if OURS in api.store:
            api.world.saw("DELETED", api.store[OURS])
        return None

    reconciler = api.reconciler(meanwhile)
    with patch.object(reconciler, "gone") as gone:
        asyncio.run(reconciler.reconcile(KEY))
    gone.assert_called_once_with("1")


def test_the_pod_that_is_shown_is_asked_and_no_other() -> None:
    api = trains()
    there = api.store[f"{PODS}/{BERLIN}-x"]
    metadata = {**there["metadata"], "creationTimestamp": "2026-07-01T00:00:00Z", "uid": "old"}
    # One that was evicted, and one of the coordinator's too, come later in any order but that of their birth.
    for name, labels in ((f"{BERLIN}-zzz", metadata["labels"]), (f"{NAME}.coordinator-zzz", None)):
        labels = labels or api.store[f"{PODS}/{NAME}.coordinator-x"]["metadata"]["labels"]
        old = {**metadata, "name": name, "labels": labels}
        api.put(f"{PODS}/{name}", {**there, "metadata": old, "status": {"phase": "Failed"}})
    for name in (f"{BERLIN}-x", f"{NAME}.coordinator-x"):
        pod = api.store[f"{PODS}/{name}"]
        later = {**pod["metadata"], "creationTimestamp": "2026-07-01T01:00:00Z"}
        api.put(f"{PODS}/{name}", {**pod, "metadata": later})
    asked = []

    async def ask(url: str) -> bytes | None:
        asked.append(url)
        return None

    api.look(ask)
    assert sorted(asked) == [f"http://10.0.{place}:9400/status" for place in ("0.1", "1.1", "1.2")]


def test_what_becomes_of_a_claim_can_be_changed_at_any_time() -> None:
    api = applied()
    kept = {"size": "1Gi", "onDelete": "Delete"}
    local = here(NAMES)

    def checkpoint(**changes: str) -> list[dict[str, object]]:
        return [{**each, "volumes": {**each["volumes"], "checkpoint": {**kept, **changes}}} for each in local]

    api.change(local=checkpoint())
    reconciler = api.reconciler()
    asyncio.run(reconciler.reconcile(KEY))
    [path] = [path for path in api.store if path.endswith(f"persistentvolumeclaims/{NAME}.berlin")]
    assert api.store[path]["metadata"]["ownerReferences"]
    api.change(local=checkpoint(onDelete="Retain"))
    asyncio.run(reconciler.reconcile(KEY))
    assert "ownerReferences" not in api.store[path]["metadata"], "it outlives the consortium"
    api.change(local=checkpoint(onDelete="Retain", size="2Gi"))
    asyncio.run(reconciler.reconcile(KEY))
    assert api.store[path]["spec"]["resources"]["requests"]["storage"] == "2Gi"


def test_a_coordinator_whose_replicaset_is_gone_keeps_nothing_from_being_said() -> None:
    api = trains()
    api.take(f"/apis/apps/v1/namespaces/{KEY[0]}/replicasets/{NAME}.coordinator")
    for job in (BERLIN, LYON):
        api.put(f"{JOBS}/{job}", {**api.store[f"{JOBS}/{job}"], "status": {"conditions": FAILED}})
        api.put(
            f"{PODS}/{job}-x", {**api.store[f"{PODS}/{job}-x"], "status": {**running(""), "phase": "Failed"}}
        )
    api.look()
    api.look()
    assert api.status["state"] == "Failed"
