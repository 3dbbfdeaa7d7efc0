"""The operator is troubled in every way that an alert is for, and a real Prometheus says so with the chart's rules.

One operator on a real control plane for all tests, which reaches the API server through a proxy that can answer
otherwise. Its watches last a second instead of thirty, and what has to be so for minutes has to be so for seconds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.builders import manifest
from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.integration.faulty_api import FaultyApi
from tests.integration.operating import CRD, NAMES
from tests.integration.probing import Probed, running
from tests.integration.test_definition import older
from tests.monitoring.monitored import ruled
from tests.monitoring.prometheus import Prometheus, Target, at_once

from pcmoe_operator.leading import WORKERS

SYSTEM = "pcmoe-system"
MANY = 10_000
pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True, kw_only=True, slots=True)
class Troubled:
    """An operator, who stands between it and the API server, and who looks at it."""

    operator: Probed
    api: FaultyApi
    prometheus: Prometheus

    @property
    def plane(self) -> ControlPlane:
        return self.operator.plane


@pytest.fixture(scope="module")
def troubled(
    own_plane: ControlPlane, monitoring_programs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Troubled]:
    """All that runs."""
    folder = tmp_path_factory.mktemp("troubled")
    rules = folder / "rules.yaml"
    rules.write_text(at_once(ruled(watch_seconds=1)))
    told = {"watchSeconds": 1, "resyncSeconds": 2, "leaseSeconds": 15}
    with own_plane.namespace() as namespace, FaultyApi(own_plane.kubeconfig) as api:
        kubeconfig = api.kubeconfig(own_plane.kubeconfig)
        with running(Probed(own_plane, namespace, folder, kubeconfig, **told)) as operator:
            page = Target(
                listen=f"127.0.0.1:{operator.settings()['metricsPort']}",
                labels={"namespace": SYSTEM, "pod": "pcmoe-operator-x"},
            )
            program = monitoring_programs["prometheus"]
            with Prometheus(program, folder / "prometheus", [page], rules) as prometheus:
                yield Troubled(operator=operator, api=api, prometheus=prometheus)


@pytest.fixture
def here(troubled: Troubled) -> Iterator[Troubled]:
    """The same, with all well at the beginning; one that lost its Lease is started again, as the kubelet does."""
    if not troubled.operator.running:
        troubled.operator.start()
    troubled.operator.until_leading(within=40)
    yield troubled
    troubled.api.heal()


def test_a_consortium_that_failed_and_an_operator_that_is_gone_are_told(here: Troubled) -> None:
    here.operator.apply()
    here.operator.all_pods()
    here.prometheus.until_over("PCMoENoOperatorLeads")
    here.operator.annotate("lyon", outcome="fail:66")
    here.prometheus.until_fires("PCMoEConsortiumFailed", namespace=SYSTEM)
    here.operator.change(attempt=2)
    here.prometheus.until_over("PCMoEConsortiumFailed")
    here.operator.stop()
    here.prometheus.until_fires("PCMoENoOperatorLeads")
    here.operator.start()
    here.operator.until_leading()
    here.prometheus.until_over("PCMoENoOperatorLeads")


def test_looks_that_fail_again_and_again_are_told_with_their_reason(here: Troubled) -> None:
    # As with a Role that doesn't let it write a status.
    here.api.fault("PATCH", "/pcmoeconsortia/mute/status", status=403, times=MANY)
    here.operator.apply("mute")
    here.prometheus.until_fires("PCMoEReconcileErrors", namespace=SYSTEM, reason="api_refused")


def test_consortia_that_nobody_has_time_for_are_told(here: Troubled) -> None:
    here.api.fault("PATCH", "/", slow=8.0, times=MANY)
    crowd = [manifest(NAMES, {"metadata.name": f"crowd-{number}"}) for number in range(WORKERS + 2)]
    here.plane.apply({"apiVersion": "v1", "kind": "List", "items": crowd}, namespace=here.operator.namespace)
    here.prometheus.until_fires("PCMoEQueueStuck", namespace=SYSTEM, pod="pcmoe-operator-x")
    here.api.heal()
    here.prometheus.until_over("PCMoEQueueStuck")


def test_a_definition_that_is_too_old_is_told_until_it_is_new(here: Troubled) -> None:
    here.plane.define(older(CRD))
    try:
        here.prometheus.until_fires("PCMoECRDTooOld", namespace=SYSTEM)
    finally:
        here.plane.define(CRD)
    here.prometheus.until_over("PCMoECRDTooOld")


def test_a_watch_that_can_not_be_opened_is_told_though_the_operator_is_started_again(here: Troubled) -> None:
    here.api.fault("GET", "/pods?watch=true", status=500, times=MANY)
    eventually("it is not live", lambda: here.operator.get("/healthz")[0] == 503, within=30)
    here.prometheus.until("max(pcmoe_operator_watch_age_seconds) > 4")
    here.operator.stop()  # as the kubelet does
    here.api.heal()
    here.operator.start()
    here.operator.until_leading(within=40)
    here.prometheus.until_fires("PCMoEWatchDead", namespace=SYSTEM, resource="pods")
    assert not here.prometheus.query('ALERTS{alertname="PCMoEWatchDead",resource="jobs"}')
