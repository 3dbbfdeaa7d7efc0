"""The operator's lifecycle of a consortium, on a real API server, scheduler and Job controller."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.integration.operating import NAMES, Operated, coordinator, node, operated


@pytest.fixture
def here(own_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Operated]:
    with operated(own_plane, namespace, tmp_path, Operated) as found:
        yield found


def conditions(status: dict[str, object]) -> dict[str, str]:
    return {each["type"]: each["status"] for each in status.get("conditions", [])}  # type: ignore[attr-defined]


def test_a_consortium_that_is_applied_trains_and_completes(here: Operated) -> None:
    here.apply()
    pods = here.all_pods()
    for name in NAMES:
        spec = pods[name]["spec"]
        assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert spec["automountServiceAccountToken"] is False
    said = {name: node(1) for name in NAMES}
    leading = coordinator(1)
    for name in NAMES:
        here.answer(name, said[name])
    here.answer("", leading)
    status = here.until(lambda status: status.get("state") == "Running" and status.get("loss") == "2.25")
    assert (status["ready"], status["round"]) == ("2/2", "1/4")
    for name in NAMES:
        said[name] |= node(4, "DONE")
    leading |= coordinator(4)
    for name in NAMES:
        here.annotate(name, outcome="succeed")
    status = here.until(lambda status: status.get("state") == "Completed")
    assert status["round"] == "4/4"
    assert conditions(status)["Completed"] == "True"
    assert "Completed" in here.plane.kubectl("get", "pcmoe", "pilot", "-n", here.namespace)


def test_a_job_that_succeeds_without_the_last_commit_completes_nothing(here: Operated) -> None:
    here.apply()
    here.all_pods()
    for name in NAMES:
        here.annotate(name, outcome="succeed")
    status = here.until(lambda status: "Succeeded" in {p["status"]["phase"] for p in here.pods().values()})
    assert status.get("state") != "Completed"


def test_suspend_takes_the_pods_away_and_resume_brings_them_back(here: Operated) -> None:
    here.apply()
    here.all_pods()
    here.plane.kubectl(
        "patch", "pcmoe", "pilot", "-n", here.namespace, "--type=merge", "-p", '{"spec":{"suspend":true}}'
    )
    here.until(lambda status: status.get("state") == "Suspended" and not set(here.pods()) & set(NAMES))
    here.plane.kubectl(
        "patch", "pcmoe", "pilot", "-n", here.namespace, "--type=merge", "-p", '{"spec":{"suspend":false}}'
    )
    here.all_pods()
    here.until(lambda status: status.get("state") in ("Pending", "Loading", "Running", "Waiting"))


def test_a_node_that_fails_for_good_fails_the_attempt_frees_the_rest_and_a_new_attempt_begins_anew(
    here: Operated,
) -> None:
    here.apply()
    here.all_pods()
    here.annotate("lyon", outcome="fail:66")
    status = here.until(lambda status: status.get("state") == "Failed")
    failed = next(each for each in status["conditions"] if each["type"] == "Failed")
    assert failed["status"] == "True" and "lyon" in failed["message"]
    here.until(lambda _status: "berlin" not in here.pods())
    here.kill()
    here.start()
    here.plane.kubectl(
        "patch", "pcmoe", "pilot", "-n", here.namespace, "--type=merge", "-p", '{"spec":{"attempt":2}}'
    )
    pods = here.all_pods()
    assert {pod["metadata"]["labels"].get("pcmoe.dev/attempt") for name, pod in pods.items() if name} == {"2"}
    here.until(lambda status: status.get("state") not in ("Failed",) and status.get("attempt") == 2)


def test_a_manifest_that_lacks_what_a_cluster_needs_is_not_accepted_and_says_what(here: Operated) -> None:
    here.apply(local=[{"name": name} for name in NAMES])
    status = here.until(lambda status: status.get("state") == "Invalid")
    accepted = next(each for each in status["conditions"] if each["type"] == "Accepted")
    assert accepted["status"] == "False"
    assert "spec.local[0].volumes.dataset: is missing" in accepted["message"]
    assert here.pods() == {}


def test_what_is_deleted_takes_everything_along_but_the_checkpoints(here: Operated) -> None:
    here.apply()
    here.all_pods()
    here.plane.kubectl("delete", "pcmoe", "pilot", "-n", here.namespace, "--timeout=20s")
    kinds = "jobs,pods,replicasets,secrets,configmaps,services,networkpolicies"

    def left(_status: object = None) -> list[str]:
        names = here.plane.kubectl("get", kinds, "-n", here.namespace, "-o", "name").split()
        return [name for name in names if "pilot" in name]

    # The garbage collector looks for new kinds, such as ours, every half minute.
    eventually("nothing is left", lambda: not left(), within=90)
    claims = here.plane.kubectl("get", "pvc", "-n", here.namespace, "-o", "name").split()
    assert len(claims) == 2


def test_an_operator_that_is_told_to_stop_lets_go_of_the_lease_and_the_next_one_goes_on(
    here: Operated,
) -> None:
    here.apply()
    here.all_pods()
    before = {pod["metadata"]["uid"] for pod in here.pods().values()}
    assert here.stop() == 0, here.log.read_text()
    here.start()
    here.answer("berlin", node(1))
    here.until(lambda status: any(p.get("phase") == "TRAINING" for p in status.get("participants", [])))
    assert {pod["metadata"]["uid"] for pod in here.pods().values()} == before
