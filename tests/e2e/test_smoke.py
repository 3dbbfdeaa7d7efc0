"""Install, train, lose a pod, delete, uninstall: on a real kubelet, with images from the Dockerfiles."""

import tarfile
from pathlib import Path

import pytest
from tests.cluster import build
from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.e2e import pilot
from tests.e2e.installed import CHART, RELEASE, SYSTEM, Installed, participants, round_of
from tests.e2e.machine import Machine
from tests.e2e.phases import phase, say
from tests.e2e.pilot import CONSORTIUM, PARTICIPANTS, ROUNDS, Disks
from tests.monitoring.monitored import monitored
from tests.monitoring.prometheus import Prometheus

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]
ALERTS = CHART / "files" / "alerts.yaml"
NAMESPACE = "hospitals"
LOST = "lawfirm"
START_SECONDS = 240.0
TRAIN_SECONDS = 600.0
THREE_DIGITS = 5e-3
DEFINITION = {"CustomResourceDefinition//pcmoeconsortia.pcmoe.dev", "APIService//v1alpha1.pcmoe.dev"}
"""The second is the API server's own way of serving the first."""
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def test_a_pilot_from_helm_install_to_uninstall(plane: ControlPlane, machine: Machine, place: Path) -> None:
    rig = Installed(plane, machine, NAMESPACE)
    for name in (SYSTEM, NAMESPACE):
        head = {"apiVersion": "v1", "kind": "Namespace"}
        plane.apply({**head, "metadata": {"name": name, "labels": RESTRICTED}})
    with phase("volumes and the model that everybody starts from"):
        pilot.make_model(place / "model")
        disks = Disks(place / "volumes", place / "model")
        plane.apply(disks.objects(NAMESPACE))
    before_install = rig.objects()
    with phase("helm install"):
        rig.helm("install", RELEASE, CHART, *rig.values(), "--wait", "--timeout=2m")
    before_apply = rig.objects(NAMESPACE)

    _train(rig)
    with phase("the same run on one machine"):
        finals = pilot.assert_same(pilot.manifest(NAMESPACE), disks, place / "local")
    shown = rig.table()
    assert (shown["STATE"], shown["ROUND"]) == ("Completed", f"{ROUNDS}/{ROUNDS}")
    assert float(shown["LOSS"]) == pytest.approx(sum(finals) / len(finals), rel=THREE_DIGITS)

    with phase("a report of what the volumes hold"):
        told = rig.report(place / "report")
        assert (told["leftOut"], told["elsewhere"]) == ({}, [])
        assert [told["loss"][name]["lastHeldOut"] for name in PARTICIPANTS] == finals

    claims = {f"PersistentVolumeClaim/{NAMESPACE}/{CONSORTIUM}.{name}" for name in PARTICIPANTS}
    with phase("delete: what stays are the claims"):
        plane.kubectl("delete", "pcmoe", CONSORTIUM, "-n", NAMESPACE)
        rig.until_only(before_apply | claims, NAMESPACE)
    with phase("helm uninstall: what stays is the CRD"):
        rig.helm("uninstall", RELEASE, "--wait", "--timeout=2m")
        rig.until_only(before_install | claims | DEFINITION)


def _scraped(rig: Installed) -> None:
    """The chart's PodMonitor leads a Prometheus to all five pods."""
    programs, folder = build.ensure(*build.MONITORING), rig.plane.folder / "prometheus"
    job = monitored(NAMESPACE)
    job["kubernetes_sd_configs"][0]["kubeconfig_file"] = str(rig.plane.kubeconfig)
    with Prometheus(programs["prometheus"], folder, rules=ALERTS, jobs=[job]) as prometheus:
        here = f'namespace="{NAMESPACE}",consortium="{CONSORTIUM}"'
        trained = prometheus.until(
            f"pcmoe_node_committed_round{{{here}}} > 0", lambda f: len(f) == len(PARTICIPANTS)
        )
        assert sorted(labels["participant"] for labels, _ in trained) == sorted(PARTICIPANTS)
        prometheus.until(f"pcmoe_coordinator_committed_round{{{here}}} > 0")
        assert prometheus.firing() == set()


def _told(rig: Installed) -> None:
    """`pcmoe` tells of all pods what they say themselves."""
    said = rig.pcmoe("logs", CONSORTIUM, "--tail", "1")
    assert all(name in said for name in PARTICIPANTS), said
    rig.pcmoe("must-gather", CONSORTIUM, "--output", str(rig.plane.folder / "gathered.tar.gz"))
    with tarfile.open(rig.plane.folder / "gathered.tar.gz") as gathered:
        names = gathered.getnames()
    say("\n".join(names))
    assert sum(name.endswith("/status.json") for name in names) == len(PARTICIPANTS) + 1, names


def _train(rig: Installed) -> None:
    """From apply to Completed; one of four pods is deleted on the way, and the others stay."""
    with phase("from kubectl apply to four pods that train"):
        rig.plane.apply(pilot.manifest(NAMESPACE), namespace=NAMESPACE)
        rig.until("everybody ready", lambda status: status.get("ready") == "4/4", START_SECONDS)
        pods = rig.pods()
        assert participants(pods) == list(PARTICIPANTS)
        for name in PARTICIPANTS:
            assert pods[name]["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    with phase("a committed round, and what Prometheus sees of it"):
        rig.until("a committed round", lambda status: round_of(status) >= 1, TRAIN_SECONDS)
        _scraped(rig)
    with phase("a pod deleted; another takes its place"):
        rig.plane.kubectl("delete", "pod", pods[LOST]["metadata"]["name"], "-n", NAMESPACE, "--wait=false")
        with rig.explained():
            replaced = eventually("another pod", lambda: rig.pods().get(LOST), within=START_SECONDS)
        assert replaced["metadata"]["uid"] != pods[LOST]["metadata"]["uid"]
        where = (f"pod/{replaced['metadata']['name']}", "-n", NAMESPACE)
        rig.plane.kubectl("wait", "--for=condition=Ready", *where, "--timeout=120s", seconds=130)
        rig.until("everybody ready again", lambda status: status.get("ready") == "4/4", START_SECONDS)
        rig.table()
    with phase("what the command line and the report see of a run that goes on"):
        _told(rig)
        told = rig.report(rig.plane.folder / "report", "--no-pods")
        assert told["leftOut"] == {} and set(told["loss"]) == set(PARTICIPANTS)
    with phase("to the last round"):
        rig.until("Completed", lambda status: status.get("state") == "Completed", TRAIN_SECONDS)
    for name in (name for name in PARTICIPANTS if name != LOST):
        only = rig.succeeded(name, START_SECONDS)
        assert only["metadata"]["uid"] == pods[name]["metadata"]["uid"]
        assert only["status"]["containerStatuses"][0]["restartCount"] == 0
