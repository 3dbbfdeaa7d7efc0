"""The control plane that integration tests run on is a real one, does what they say, and leaves nothing behind."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.builders import manifest
from tests.cluster import build
from tests.cluster.errors import KubectlError
from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.unit.bad_manifests import BAD_MANIFESTS

ROOT = Path(__file__).parent.parent.parent
OUTCOME = "pcmoe.dev/test-outcome"
POD_IP = "pcmoe.dev/test-pod-ip"


def job(name: str, *, pods: int = 1, annotations: Mapping[str, str], gpus: int = 0) -> dict[str, Any]:
    """A Job of pods that all run at once; each that fails stays failed, and the Job with it."""
    container: dict[str, Any] = {"name": "main", "image": "none"}
    if gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "parallelism": pods,
            "completions": pods,
            "backoffLimit": 0,
            "template": {
                "metadata": {"annotations": dict(annotations)},
                "spec": {"restartPolicy": "Never", "containers": [container]},
            },
        },
    }


def the_pod(plane: ControlPlane, namespace: str) -> dict[str, Any]:
    """The only pod of a namespace, as soon as there is one."""
    return eventually("the Job's pod", lambda: plane.pods(namespace), within=20)[0]


def wait(plane: ControlPlane, namespace: str, what: str, condition: str) -> None:
    """Wait until an object has a condition."""
    plane.kubectl("wait", what, f"--for={condition}", "--namespace", namespace, "--timeout=20s")


def test_the_api_server_says_the_version_that_was_built(own_plane: ControlPlane) -> None:
    version = json.loads(own_plane.kubectl("version", "-o", "json"))
    built = {version["clientVersion"]["gitVersion"], version["serverVersion"]["gitVersion"]}
    assert built == {build.required("k8s.io/kubernetes")} == {"v1.36.3"}


def test_a_job_of_two_pods_completes_on_fake_nodes(own_plane: ControlPlane) -> None:
    with own_plane.namespace() as namespace:
        own_plane.apply(job("two", pods=2, annotations={OUTCOME: "succeed"}), namespace=namespace)
        wait(own_plane, namespace, "job/two", "condition=Complete")
        assert [pod["status"]["phase"] for pod in own_plane.pods(namespace)] == ["Succeeded"] * 2


def test_a_pod_runs_at_the_address_it_is_given_until_it_is_told_to_fail(own_plane: ControlPlane) -> None:
    with own_plane.namespace() as namespace:
        own_plane.apply(job("one", annotations={POD_IP: "127.0.0.2"}), namespace=namespace)
        name = the_pod(own_plane, namespace)["metadata"]["name"]
        wait(own_plane, namespace, f"pod/{name}", "condition=Ready")
        assert the_pod(own_plane, namespace)["status"]["podIP"] == "127.0.0.2"
        own_plane.kubectl("annotate", "pod", name, f"{OUTCOME}=fail:42", "--namespace", namespace)
        wait(own_plane, namespace, "job/one", "condition=Failed")
        status = the_pod(own_plane, namespace)["status"]
        assert status["phase"] == "Failed"
        assert status["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 42


def test_a_deleted_pod_of_a_job_with_a_failure_policy_counts_as_failed(own_plane: ControlPlane) -> None:
    """The Job controller waits until such a pod has an end, which a fake node must give it."""
    patient = job("one", annotations={})
    on_exit = {"containerName": "main", "operator": "In", "values": [1]}
    patient["spec"]["podFailurePolicy"] = {"rules": [{"action": "FailJob", "onExitCodes": on_exit}]}
    patient["spec"]["backoffLimit"] = 3
    with own_plane.namespace() as namespace:
        own_plane.apply(patient, namespace=namespace)
        name = the_pod(own_plane, namespace)["metadata"]["name"]
        wait(own_plane, namespace, f"pod/{name}", "condition=Ready")
        own_plane.kubectl("delete", "pod", name, "--namespace", namespace)
        wait(own_plane, namespace, "job/one", "jsonpath={.status.failed}=1")


def test_a_pod_that_asks_for_more_gpus_than_a_node_has_stays_pending(own_plane: ControlPlane) -> None:
    with own_plane.namespace() as namespace:
        own_plane.apply(job("greedy", annotations={}, gpus=9), namespace=namespace)
        name = the_pod(own_plane, namespace)["metadata"]["name"]
        wait(own_plane, namespace, f"pod/{name}", "condition=PodScheduled=false")
        pod = the_pod(own_plane, namespace)
        [scheduled] = [each for each in pod["status"]["conditions"] if each["type"] == "PodScheduled"]
        assert pod["status"]["phase"] == "Pending"
        assert scheduled["reason"] == "Unschedulable"
        assert "Insufficient nvidia.com/gpu" in scheduled["message"]


def test_a_user_has_the_rights_it_was_given_and_its_requests_can_be_read(own_plane: ControlPlane) -> None:
    with own_plane.namespace() as namespace:
        own_plane.kubectl("create", "serviceaccount", "worker", "--namespace", namespace)
        account = f"system:serviceaccount:{namespace}:worker"
        people = {
            account: own_plane.kubeconfig_for(account),
            f"eve-{namespace}": own_plane.kubeconfig_for(f"eve-{namespace}", ["partners"]),
        }
        for subject in (f"--serviceaccount={namespace}:worker", "--group=partners"):
            name = f"view{subject.split('=')[0]}"
            own_plane.kubectl(
                "create", "rolebinding", name, "--clusterrole=view", subject, "--namespace", namespace
            )
        for user, kubeconfig in people.items():
            own_plane.kubectl("get", "pods", "--namespace", namespace, kubeconfig=kubeconfig)
            with pytest.raises(KubectlError, match="forbidden"):
                own_plane.kubectl("get", "secrets", "--namespace", namespace, kubeconfig=kubeconfig)
            listed = [("list", "pods", namespace, 200), ("list", "secrets", namespace, 403)]
            eventually(f"audit log of {user}", partial(has, own_plane, user, listed), within=10)


def has(plane: ControlPlane, user: str, wanted: Sequence[tuple[str, str, str, int]]) -> bool:
    """Whether the audit log has these requests of a user, in this order, each once."""
    seen = [(each.verb, each.resource, each.namespace, each.code) for each in plane.requests(user)]
    return [each for each in seen if each in wanted] == wanted


@pytest.fixture(scope="module")
def crd(own_plane: ControlPlane) -> None:
    """The API server knows consortia."""
    own_plane.define(yaml.safe_load((ROOT / "manifests/crd.yaml").read_text()))


@pytest.mark.usefixtures("crd")
def test_the_pilot_is_accepted(own_plane: ControlPlane) -> None:
    with own_plane.namespace() as namespace:
        own_plane.apply(ROOT / "manifests/samples/pilot.yaml", namespace=namespace)
        stored = own_plane.read("pcmoeconsortium", "pilot", "--namespace", namespace)
        sample = yaml.safe_load((ROOT / "manifests/samples/pilot.yaml").read_text())
        assert names(stored) == names(sample) != []


def names(consortium: Mapping[str, Any]) -> list[str]:
    """Of its participants."""
    return [each["name"] for each in consortium["spec"]["agreement"]["participants"]]


@pytest.mark.usefixtures("crd")
def test_the_api_server_refuses_what_schema_and_rules_are_said_to_refuse_and_nothing_else(
    own_plane: ControlPlane,
) -> None:
    rows = {f"row-{number}": row for number, row in enumerate(BAD_MANIFESTS)}
    made = [manifest(3), *(manifest(3, {"metadata.name": name, **row.changes}) for name, row in rows.items())]
    with pytest.raises(KubectlError) as refused:
        stream = "\n---\n".join(map(json.dumps, made))
        own_plane.kubectl("create", "--dry-run=server", "-o", "name", "-f", "-", given=stream)
    accepted = {line.split("/")[-1] for line in refused.value.stdout.split()}
    other = {name for name, row in rows.items() if {"kind", "apiVersion"} & set(row.changes)}
    by_operator = {name for name, row in rows.items() if row.by == "operator"} - other
    assert accepted == {"hospitals", *by_operator}


def test_nothing_is_left_when_the_test_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, sys, time; from pathlib import Path; from tests.cluster.plane import ControlPlane\n"
        "with ControlPlane(Path(sys.argv[1]), fake_nodes=1) as plane:\n"
        "    print(*(process.pid for process in plane.processes), flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "killed")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as test:
        try:
            assert test.stdout is not None
            pids = [int(pid) for pid in test.stdout.readline().split()]
            assert len(pids) == 5 and all(map(runs, pids))
        finally:
            test.send_signal(signal.SIGKILL)
    eventually("end of all processes", lambda: not any(map(runs, pids)), within=10)


def test_nothing_is_left_when_the_plane_is_closed(tmp_path: Path) -> None:
    with ControlPlane(tmp_path) as plane:
        pids = [process.pid for process in plane.processes]
        assert len(pids) == 4 and all(map(runs, pids))
    assert not any(map(runs, pids))
    assert not (tmp_path / "etcd").exists()


def runs(pid: int) -> bool:
    """Whether there is such a process, and it isn't only waiting for its parent to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False
