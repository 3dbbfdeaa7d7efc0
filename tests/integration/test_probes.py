"""What the operator says of itself: probes and figures."""

import time
from pathlib import Path

from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.integration.faulty_api import FaultyApi
from tests.integration.operating import CRD
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
            one.until(lambda status: status.get("state") == "Running")
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
        api.fault("GET", "/", status=503, times=1_000)
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
