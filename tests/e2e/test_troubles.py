"""Everything that may happen while four pods train, one after the other; the result is that of a quiet run.

All under a user that no image knows, as OpenShift gives each namespace one; here an admission policy does.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.e2e import images, pilot
from tests.e2e.installed import CHART, RELEASE, SYSTEM, Installed, round_of
from tests.e2e.machine import Machine
from tests.e2e.phases import phase
from tests.e2e.pilot import CONSORTIUM, PARTICIPANTS, Disks

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(3600)]
NAMESPACE = "openshift-like"
USER = 1000680000
ROUNDS = 16
STEPS = 2
SECONDS = 300.0
SIGKILL = 9
LOWER = "0.0.9"


@pytest.fixture
def rig(plane: ControlPlane, machine: Machine) -> Installed:
    for name in (SYSTEM, NAMESPACE):
        head = {"apiVersion": "v1", "kind": "Namespace"}
        labels = {"pod-security.kubernetes.io/enforce": "restricted", "user": str(USER)}
        plane.apply({**head, "metadata": {"name": name, "labels": labels}})
    plane.apply(*_user_for_every_pod())
    made = Installed(plane, machine, NAMESPACE)
    made.helm("uninstall", RELEASE, "--ignore-not-found", "--wait")

    def in_force() -> bool:
        """The policy takes a moment to be known."""
        closed = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        probe = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "probe", "namespace": NAMESPACE},
            "spec": {
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{"name": "probe", "image": images.PAUSE, "securityContext": closed}],
            },
        }
        answer = plane.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", given=probe)
        return bool(json.loads(answer)["spec"]["securityContext"].get("runAsUser") == USER)

    eventually("the policy in force", in_force, within=60, every=0.5)
    return made


def _user_for_every_pod() -> tuple[dict[str, Any], dict[str, Any]]:
    version = "admissionregistration.k8s.io/v1"
    context = f"Object.spec.securityContext{{runAsUser: {USER}, fsGroup: {USER}}}"
    patch = f"Object{{spec: Object.spec{{securityContext: {context}}}}}"
    policy = {
        "apiVersion": version,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": "user"},
        "spec": {
            "reinvocationPolicy": "Never",
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE"],
                        "resources": ["pods"],
                    }
                ]
            },
            "mutations": [
                {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": patch}},
            ],
        },
    }
    chosen = {"namespaceSelector": {"matchLabels": {"user": str(USER)}}}
    binding = {
        "apiVersion": version,
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": "user"},
        "spec": {"policyName": "user", "matchResources": chosen},
    }
    return policy, binding


def test_a_run_through_every_trouble_ends_as_a_quiet_one(rig: Installed, place: Path) -> None:
    plane, machine = rig.plane, rig.machine
    pilot.make_model(place / "model-2")
    disks = Disks(place / "volumes-2", place / "model-2")
    plane.apply(disks.objects(NAMESPACE))
    plain = pilot.manifest(NAMESPACE, ROUNDS, STEPS)
    with phase("helm install of a lower version"):
        rig.helm("package", CHART, "--version", LOWER, "--app-version", LOWER, "--destination", place)
        lower = rig.values(images.OTHER_TAG)
        old = place / f"pcmoe-{LOWER}.tgz"
        rig.helm("install", RELEASE, old, *lower, "--set=openshift=true", "--wait", "--timeout=2m")
    with phase("to the first round"):
        plane.apply(plain, namespace=NAMESPACE)
        _go_on(rig, 1)
        for pod in rig.pods().values():
            assert pod["spec"]["securityContext"]["runAsUser"] == USER
    began = _uids(rig)

    with phase("a node's process killed: back in the same pod"):
        machine.kill(rig.pods()["clinic"], SIGKILL)
        _go_on(rig, 2)
        clinic = rig.pods()["clinic"]
        assert clinic["status"]["containerStatuses"][0]["restartCount"] == 1
    with phase("the operator's pod deleted"):
        plane.kubectl("delete", "pods", "--all", "-n", SYSTEM, "--wait=false")
        _go_on(rig, 2)
    with phase("the coordinator's pod deleted"):
        plane.kubectl("delete", "pod", rig.pods()[""]["metadata"]["name"], "-n", NAMESPACE, "--wait=false")
        _go_on(rig, 2)
    with phase("the API server killed"):
        plane.restart_apiserver()
        _go_on(rig, 1)
    with phase("helm upgrade to other images"):
        rig.helm("upgrade", RELEASE, CHART, *rig.values(), "--set=openshift=true", "--wait", "--timeout=2m")
        _go_on(rig, 1)
    assert {name: uid for name, uid in _uids(rig).items() if name} == {k: v for k, v in began.items() if k}

    with phase("suspended, and resumed"):
        _suspend(rig, True)
        stopped = rig.until("suspended", lambda status: status.get("state") == "Suspended", SECONDS)
        with rig.explained():
            eventually("no pod of a participant", lambda: not set(rig.pods()) - {""}, within=SECONDS)
        _suspend(rig, False)
        resumed = _go_on(rig, 1)
        assert round_of(resumed) > round_of(stopped)
    with phase("to the end"):
        rig.until("Completed", lambda status: status.get("state") == "Completed", 2 * SECONDS)
        rig.table()
    with phase("the same run on one machine"):
        pilot.assert_same(plain, disks, place / "local-2")
    plane.kubectl("delete", "pcmoe", CONSORTIUM, "-n", NAMESPACE)
    rig.helm("uninstall", RELEASE, "--wait", "--timeout=2m")


def _go_on(rig: Installed, rounds: int) -> dict[str, Any]:
    """Wait until so many more rounds are committed."""
    reached = round_of(rig.status()) + rounds
    return rig.until(f"round {reached}", lambda status: round_of(status) >= reached, SECONDS)


def _uids(rig: Installed) -> dict[str, str]:
    pods = rig.pods()
    assert set(PARTICIPANTS) <= set(pods)
    return {name: pod["metadata"]["uid"] for name, pod in pods.items()}


def _suspend(rig: Installed, wanted: bool) -> None:
    patch = json.dumps({"spec": {"suspend": wanted}})
    rig.plane.kubectl("patch", "pcmoe", CONSORTIUM, "-n", NAMESPACE, "--type=merge", "-p", patch)
