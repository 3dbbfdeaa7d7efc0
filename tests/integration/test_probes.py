"""What the operator says of itself: probes, figures, and a CRD that it can't work with."""

import copy
import time
from pathlib import Path
from typing import Any

from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.integration.faulty_api import FaultyApi
from tests.integration.operating import CRD, NAMES
from tests.integration.probing import Probed, running

NAME = CRD["metadata"]["name"]
OK = (200, "ok\n")


def test_a_leader_and_one_that_waits_are_both_live_and_ready_and_say_who_leads(
    own_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    with running(Probed(own_plane, namespace, tmp_path / "one")) as one:
        one.until_leading()
        with running(Probed(own_plane, namespace, tmp_path / "two")) as two:
            eventually("the second one is ready", lambda: two.get("/readyz") == OK, within=20)
            one.apply()
            one.all_pods()
            one.until(lambda status: bool(status.get("state")))
            assert (one.get("/healthz"), one.get("/readyz"), two.get("/healthz")) == (OK, OK, OK)
            assert two.metric("pcmoe_operator_leader") == 0
            assert one.metric("pcmoe_operator_reconciles_total") > 0
            assert one.metric("pcmoe_operator_queue_length") == 1
            state = one.status()["state"]
            assert one.metric(f'pcmoe_operator_consortia{{state="{state}"}}') == 1
            series = f'namespace="{namespace}",resource="pods"'
            ages = [line for line in one.get("/metrics")[1].splitlines() if "watch_age_seconds{" in line]
            assert len(ages) == 3 and any(series in line or "pods" in line for line in ages)
            written = '{code="200",resource="pcmoeconsortia/status",verb="patch"}'
            assert one.metric(f"pcmoe_operator_api_requests_total{written}") > 0


def test_without_an_api_server_it_is_live_but_not_ready(
    own_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    with FaultyApi(own_plane.kubeconfig) as api:
        api.fault("GET", "/leases", status=503, times=1_000)
        operator = Probed(own_plane, namespace, tmp_path / "one", api.kubeconfig(own_plane.kubeconfig))
        with running(operator):
            eventually("it listens", lambda: operator.get("/healthz") == OK, within=20)
            assert operator.get("/readyz") == (503, "the API server has not answered yet\n")
            api.heal()
            eventually("it is ready", lambda: operator.get("/readyz") == OK, within=20)


def test_a_watch_that_can_not_be_opened_any_more_is_noticed(
    own_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    with FaultyApi(own_plane.kubeconfig) as api:
        kubeconfig = api.kubeconfig(own_plane.kubeconfig)
        with running(Probed(own_plane, namespace, tmp_path / "one", kubeconfig, watchSeconds=1)) as one:
            one.until_leading()
            eventually("it watches", lambda: api.watches == 3, within=10)
            time.sleep(2.5)  # long enough for the watches to be opened anew: they are live without any news
            assert one.get("/healthz") == OK
            api.fault("GET", "/pods?watch=true", status=500, times=1_000)
            eventually("it is not live", lambda: one.get("/healthz")[0] == 503, within=15)
            assert f"the watch of pods in {namespace} is dead" in one.get("/healthz")[1]
            api.heal()
            eventually("it is live again", lambda: one.get("/healthz") == OK, within=15)
            assert one.running


def test_a_port_that_is_taken_is_named(own_plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    with running(Probed(own_plane, namespace, tmp_path / "one")) as one:
        eventually("it listens", lambda: one.get("/healthz") == OK, within=20)
        port = one.settings()["metricsPort"]
        two = Probed(own_plane, namespace, tmp_path / "two", metricsPort=port)
        two.start()
        assert two.ended(20) == 64
        assert two.told(f"metricsPort: {port} can't be listened on")


def older(crd: dict[str, Any]) -> dict[str, Any]:
    """The CRD as it would be before `suspend` was thought of."""
    made = copy.deepcopy(crd)
    schema = made["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"]["suspend"]
    rules = schema["properties"]["spec"].get("x-kubernetes-validations", [])
    schema["properties"]["spec"]["x-kubernetes-validations"] = [
        r for r in rules if "suspend" not in r["rule"]
    ]
    return made


def replace_crd(plane: ControlPlane, crd: dict[str, Any]) -> None:
    """Put a CRD in the place of the one that is there, if there is one."""
    plane.define(crd)


def test_without_the_crd_it_waits_and_with_an_old_one_it_does_nothing_but_say_so(
    own_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    own_plane.kubectl("delete", "crd", NAME, "--ignore-not-found", "--timeout=30s")
    one = Probed(own_plane, namespace, tmp_path / "one", resyncSeconds=2)
    one.start()
    try:
        eventually("it waits", lambda: one.told("isn't served here: apply crd.yaml"), within=20)
        assert one.get("/healthz") == OK and one.get("/readyz") == OK

        replace_crd(own_plane, older(CRD))
        eventually("it says so", lambda: one.told("CRDTooOld: the CRD in this cluster is older"), within=20)
        assert one.metric("pcmoe_operator_crd_missing_fields") == 1
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

        replace_crd(own_plane, CRD)
        one.all_pods()
        one.until(lambda status: status["conditions"][0]["status"] == "True")

        pods = {name: pod["metadata"]["uid"] for name, pod in one.all_pods().items()}
        replace_crd(own_plane, older(CRD))
        one.until(lambda status: any(each["reason"] == "CRDTooOld" for each in status["conditions"]))
        assert one.status()["state"] != "Invalid" and len(one.status()["conditions"]) > 1
        one.plane.kubectl("delete", "job", f"pilot.{NAMES[0]}.1", "-n", namespace, "--cascade=orphan")
        time.sleep(1.0)  # it would be made anew within that
        assert {name: pod["metadata"]["uid"] for name, pod in one.pods().items()} == pods
        assert f"pilot.{NAMES[0]}.1" not in one.plane.kubectl("get", "jobs", "-n", namespace, "-o", "name")
    finally:
        one.kill()
        replace_crd(own_plane, CRD)


def test_a_crd_that_is_taken_away_ends_the_process_which_waits_for_it_when_started_again(
    own_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    with running(Probed(own_plane, namespace, tmp_path / "one", watchSeconds=2)) as one:
        one.until_leading()
        eventually("it watches", lambda: one.metric("pcmoe_operator_queue_length") == 0, within=10)
        own_plane.kubectl("delete", "crd", NAME, "--timeout=30s")
        assert one.ended(40) == 75
        one.start()
        eventually("it waits", lambda: one.told("isn't served here"), within=20)
        assert one.get("/healthz") == OK
        replace_crd(own_plane, CRD)
        one.apply()
        one.all_pods()
