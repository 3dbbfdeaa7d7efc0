"""What people change, delete and bring back while a consortium runs, on a real control plane."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.integration.operating import NAMES, Operated, coordinator, node, operated


class Upgraded(Operated):
    """Its operator may be started again with another image of the nodes."""

    image = "node"

    def settings(self) -> dict[str, Any]:
        """With that image."""
        return {**super().settings(), "nodeImage": self.image}


@pytest.fixture
def here(own_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Upgraded]:
    with operated(own_plane, namespace, tmp_path, Upgraded) as found:
        yield found


def node_pods(here: Operated) -> set[str]:
    """Attempts of the pods of nodes that are there, however they are."""
    pods = here.plane.pods(here.namespace, "pcmoe.dev/role=node")
    return {pod["metadata"]["labels"]["pcmoe.dev/attempt"] for pod in pods}


def test_a_run_begun_with_another_image_can_still_be_suspended(here: Upgraded) -> None:
    here.apply()
    here.all_pods()
    here.stop()
    here.image = "another"
    here.start()
    here.change(suspend=True)
    here.until(lambda status: status.get("state") == "Suspended")
    eventually("end of all pods", lambda: not here.pods(), within=60)
    here.change(suspend=False)
    assert here.all_pods()["berlin"]["spec"]["containers"][0]["image"] == "node"


def test_a_new_attempt_never_runs_beside_the_one_before(here: Upgraded) -> None:
    here.apply()
    here.all_pods()
    here.change(attempt=2)
    eventually("a pod of the second attempt", lambda: "2" in node_pods(here), within=60)
    eventually("the second attempt alone", lambda: node_pods(here) == {"2"}, within=60)
    jobs = here.plane.read("jobs", "-n", here.namespace)["items"]
    suspended = {job["metadata"]["name"]: job["spec"]["suspend"] for job in jobs}
    assert suspended == {f"pilot.{name}.{attempt}": attempt == 1 for name in NAMES for attempt in (1, 2)}


def test_after_the_end_no_pod_is_left_and_the_next_attempt_has_a_coordinator_again(here: Upgraded) -> None:
    here.apply()
    here.all_pods()
    for name in NAMES:
        here.answer(name, node(4, "DONE"))
    here.answer("", coordinator(4))
    here.until(lambda status: status.get("state") == "Completed")
    assert "" in here.pods(), "nodes may still be taking leave"
    for name in NAMES:
        here.annotate(name, outcome="succeed")
    eventually("the coordinator's end", lambda: "" not in here.pods(), within=60)
    here.change(attempt=2)
    here.all_pods()


def test_what_is_deleted_comes_back_and_a_key_that_was_restored_is_kept(here: Upgraded) -> None:
    here.apply()
    here.all_pods()
    space = ("-n", here.namespace)
    authorities = here.plane.read("secret", "pilot.ca", *space)["data"]
    uid = here.plane.read("job", "pilot.lyon.1", *space)["metadata"]["uid"]
    here.plane.kubectl("delete", "job", "pilot.lyon.1", *space)

    def again() -> bool:
        jobs = here.plane.read("jobs", *space)["items"]
        return any(j["metadata"]["name"] == "pilot.lyon.1" and j["metadata"]["uid"] != uid for j in jobs)

    eventually("another Job", again, within=60)
    here.stop()
    here.plane.kubectl("delete", "pcmoe", "pilot", *space)
    eventually("end of the Secrets", lambda: not _secrets(here), within=60)
    kept = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pilot.ca"}, "data": authorities}
    here.plane.apply(kept, namespace=here.namespace)
    here.start()
    here.apply()
    here.until(lambda status: status.get("state") == "Running" or status.get("ready") == "2/2")
    assert here.plane.read("secret", "pilot.ca", *space)["data"] == authorities


def _secrets(here: Operated) -> list[str]:
    found = here.plane.read("secrets", "-n", here.namespace)["items"]
    return [each["metadata"]["name"] for each in found if each["metadata"]["name"].startswith("pilot.")]


def test_a_refused_object_is_told_and_keeps_no_run_from_being_stopped(here: Upgraded) -> None:
    here.plane.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "few"},
            "spec": {"hard": {"count/services": "0"}},
        },
        namespace=here.namespace,
    )

    def counted() -> bool:
        quota = here.plane.read("resourcequota", "few", "-n", here.namespace)
        return "count/services" in quota.get("status", {}).get("hard", {})

    eventually("a quota that counts", counted, within=30)
    here.apply()
    status = here.until(lambda status: "exceeded quota" in str(status.get("conditions")))
    words = [each for each in status["conditions"] if "exceeded quota" in each["message"]]
    assert "Service pcmoe-members-pilot: " in words[0]["message"]
    here.change(suspend=True)
    status = here.until(lambda status: status.get("state") == "Suspended")
    eventually("end of all pods", lambda: not here.pods(), within=60)
    assert "exceeded quota" in str(status["conditions"]), "it is told while suspended too"


def test_an_evicted_pod_is_replaced_and_counts_as_no_failure(here: Upgraded) -> None:
    here.apply()
    before = here.all_pods()["berlin"]["metadata"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": before["name"]}}
    path = f"/api/v1/namespaces/{here.namespace}/pods/{before['name']}/eviction"
    here.plane.kubectl("create", "--raw", path, "-f", "-", given=eviction)

    def replaced() -> bool:
        now = here.pods().get("berlin", {"metadata": before})["metadata"]
        return bool(now["uid"] != before["uid"])

    eventually("another pod", replaced, within=60)
    job = here.plane.read("job", "pilot.berlin.1", "-n", here.namespace)["status"]
    assert job.get("failed", 0) == 0, "the rule for DisruptionTarget passes over it"
    here.all_pods()
