"""A CRD that is missing, too old, or taken away while the operator runs.

On a plane of its own: for half a minute after a kind has come back, a garbage collector doesn't know of it.
"""

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.integration.operating import CRD, NAMES
from tests.integration.probing import Probed, running

NAME = CRD["metadata"]["name"]
OK = (200, "ok\n")


@pytest.fixture(scope="module")
def undefined(plane_programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A plane without the CRD."""
    with ControlPlane(tmp_path_factory.mktemp("undefined"), fake_nodes=1) as plane:
        yield plane


@pytest.fixture
def namespace(undefined: ControlPlane) -> Iterator[str]:
    with undefined.namespace() as name:
        yield name


def older(crd: dict[str, Any], field: str = "suspend") -> dict[str, Any]:
    """The CRD as it would be before a field of `spec` was thought of."""
    made = copy.deepcopy(crd)
    schema = made["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"][field]
    rules = schema["properties"]["spec"].get("x-kubernetes-validations", [])
    schema["properties"]["spec"]["x-kubernetes-validations"] = [r for r in rules if field not in r["rule"]]
    return made


def test_without_the_crd_it_waits_and_with_an_old_one_it_does_nothing_but_say_so(
    undefined: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    undefined.kubectl("delete", "crd", NAME, "--ignore-not-found", "--timeout=30s")
    one = Probed(undefined, namespace, tmp_path / "one", resyncSeconds=2)
    one.start()
    try:
        eventually("it waits", lambda: one.told("isn't served here: apply crd.yaml"), within=20)
        assert one.get("/healthz") == OK and one.get("/readyz") == OK

        undefined.define(older(CRD))
        eventually("it says so", lambda: one.told("CRDTooOld: the CRD in this cluster is older"), within=20)
        eventually("it is counted", lambda: one.metric("pcmoe_operator_crd_missing_fields") == 1, within=10)
        one.apply()
        status = one.until(lambda status: bool(status.get("conditions")))
        [condition] = status["conditions"]
        assert (condition["type"], condition["status"], condition["reason"]) == (
            "Accepted",
            "False",
            "CRDTooOld",
        )
        assert "it lacks spec.suspend;" in condition["message"]
        assert one.pods() == {} and one.get("/healthz") == OK and one.get("/readyz") == OK

        undefined.define(CRD)
        one.all_pods()
        one.until(lambda status: status["conditions"][0]["status"] == "True")

        pods = {name: pod["metadata"]["uid"] for name, pod in one.all_pods().items()}
        undefined.define(older(CRD))
        one.until(lambda status: any(each["reason"] == "CRDTooOld" for each in status["conditions"]))
        assert one.status()["state"] != "Invalid" and len(one.status()["conditions"]) > 1
        one.plane.kubectl("delete", "job", f"pilot.{NAMES[0]}.1", "-n", namespace, "--cascade=orphan")
        time.sleep(1.0)  # it would be made anew within that
        assert {name: pod["metadata"]["uid"] for name, pod in one.pods().items()} == pods
        assert f"pilot.{NAMES[0]}.1" not in one.plane.kubectl("get", "jobs", "-n", namespace, "-o", "name")

        undefined.define(older(CRD, "attempt"))
        eventually("it says so of another field", lambda: one.told("it lacks spec.attempt;"), within=20)
        one.change(suspend=True)

        def stopped() -> bool:
            # A watch that was opened under the CRD before tells of objects without the fields that are new.
            mark = f"example.com/touched={time.monotonic()}"
            one.plane.kubectl("annotate", "pcmoe", "pilot", "-n", namespace, "--overwrite", mark)
            return NAMES[1] not in one.pods()

        eventually("the end of the pod that has a Job", stopped, within=60, every=1.0)
    finally:
        one.kill()
        undefined.define(CRD)


def test_a_crd_that_is_taken_away_ends_the_process_which_waits_for_it_when_started_again(
    undefined: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    undefined.define(CRD)
    with running(Probed(undefined, namespace, tmp_path / "one", watchSeconds=2)) as one:
        one.until_leading()
        eventually("it watches", lambda: one.watches("pcmoeconsortia"), within=10)
        undefined.kubectl("delete", "crd", NAME, "--timeout=30s")
        assert one.ended(40) == 75
        one.start()
        eventually("it waits", lambda: one.told("isn't served here"), within=20)
        assert one.get("/healthz") == OK
        undefined.define(CRD)
        one.apply()
        one.all_pods()
