"""What may be changed in a consortium that runs, what may not, and what comes of it, on a real control plane."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.errors import KubectlError
from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.integration.operating import NAMES, VOLUMES, Operated, operated

from pcmoe_operator.pki import issue_authority


class Doubting(Operated):
    """Its operator looks at everything anew every other second."""

    def settings(self) -> dict[str, Any]:
        """With a short resync."""
        return {**super().settings(), "resyncSeconds": 2}


@pytest.fixture
def here(own_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Operated]:
    with operated(own_plane, namespace, tmp_path, Operated) as found:
        yield found


def local(*names: str, volumes: bool = True) -> list[dict[str, Any]]:
    """Entries of participants."""
    return [{"name": name, "gpus": 1, **({"volumes": VOLUMES} if volumes else {})} for name in names]


def suspended(status: dict[str, Any]) -> bool:
    """Whether it says that nothing runs any more."""
    return any(each["type"] == "Suspended" and each["status"] == "True" for each in status["conditions"])


def owners(here: Operated, kind: str) -> set[str]:
    """Uids of what owns objects of a kind."""
    found = here.plane.read(kind, "-n", here.namespace, "-l", "pcmoe.dev/consortium=pilot")["items"]
    return {owner["uid"] for each in found for owner in each["metadata"]["ownerReferences"]}


def test_an_agreement_changes_only_while_suspended_and_then_reaches_everybody(here: Operated) -> None:
    here.apply()
    here.all_pods()
    training = {"training": {"rounds": 6}}
    for change in ({"agreement": training}, {"agreement": training, "suspend": True}):
        with pytest.raises(KubectlError, match="agreement can be changed only while suspend is true"):
            here.change(**change)
    here.change(suspend=True)
    here.until(suspended)
    here.change(agreement=training)
    here.change(suspend=False)
    here.all_pods()
    here.until(lambda status: status["round"] == "0/6")
    data = here.plane.read("configmap", "pilot.config", "-n", here.namespace)["data"]
    told = [text for key, text in data.items() if '"rounds"' in text]
    assert told and all('"rounds":6' in text for text in told)


def test_who_looks_after_it_and_a_number_of_attempts_that_was_reached_stay(here: Operated) -> None:
    here.apply()
    here.change(attempt=2)
    with pytest.raises(KubectlError, match="attempt can't be lowered"):
        here.change(attempt=1)
    with pytest.raises(KubectlError, match="attempt can't be lowered"):
        here.change(attempt=None)
    with pytest.raises(KubectlError, match="managedBy can't be changed"):
        here.change(managedBy="example.com/other")


def test_a_participant_that_is_taken_out_gives_its_machine_back(here: Operated) -> None:
    here.apply()
    here.all_pods()
    bundle = issue_authority("lyon", "trial").certificate
    elsewhere = [{"name": "lyon", "endpoint": "lyon.example:8443", "caBundle": bundle}]
    here.change(local=local("berlin"), roster=elsewhere)
    eventually("its pod's end", lambda: set(here.pods()) == {"", "berlin"}, within=60)
    here.until(lambda status: [each["name"] for each in status["participants"]] == ["berlin"])


def test_a_manifest_that_became_wrong_can_still_be_suspended(here: Operated) -> None:
    here.apply()
    here.all_pods()
    here.change(local=local(*NAMES, volumes=False))
    here.until(lambda status: status["state"] == "Invalid")
    assert set(here.pods()) == {"", *NAMES}, "what runs goes on"
    here.change(suspend=True)
    here.until(suspended)
    assert not set(here.pods()) & set(NAMES)


def test_one_applied_again_under_its_name_does_not_begin_with_the_end_of_the_one_before(
    here: Operated,
) -> None:
    here.apply()
    here.all_pods()
    here.annotate("berlin", outcome="fail:66")
    here.until(lambda status: status["state"] == "Failed")
    here.plane.kubectl("delete", "pcmoe", "pilot", "-n", here.namespace, "--wait=false")
    here.apply()
    uid = here.plane.read("pcmoe", "pilot", "-n", here.namespace)["metadata"]["uid"]
    states = set()

    def runs() -> bool:
        status = here.status()
        states.add(status.get("state"))
        pods = {name: pod["status"].get("phase") for name, pod in here.pods().items()}
        return status.get("ready") == "2/2" or pods == dict.fromkeys(("", *NAMES), "Running")

    eventually("pods of its own", runs, within=60)
    eventually("Jobs of its own", lambda: owners(here, "jobs") == {uid}, within=60)
    assert "Failed" not in states


def test_what_somebody_deletes_is_back_after_a_resync(
    own_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    with operated(own_plane, namespace, tmp_path, Doubting) as here:
        here.apply()
        here.all_pods()
        lost = ("service/pcmoe-members-pilot", "networkpolicy/pilot.node", "replicaset/pilot.coordinator")
        before = {each: here.plane.read(each, "-n", namespace)["metadata"]["uid"] for each in lost}
        here.plane.kubectl("delete", *lost, "-n", namespace)

        def back(what: str) -> bool:
            kind, name = what.split("/")
            found = here.plane.read(kind, "-n", namespace)["items"]
            return any(
                each["metadata"]["name"] == name and each["metadata"]["uid"] != before[what] for each in found
            )

        eventually("others in their place", lambda: all(map(back, lost)), within=60)
        here.all_pods()
