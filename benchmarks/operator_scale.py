"""What the operator costs when there are many consortia, beside the same number of bare Jobs in the same run.

    python benchmarks/operator_scale.py [--consortia 1000] [--clients 20] [--output FILE]

On the control plane that the tests build (etcd, API server, controllers and scheduler of Kubernetes, kwok's nodes), in
one namespace: first four Jobs per consortium as the operator would make them, made by the clients, then the consortia
themselves. Pods answer `/status` at addresses of the loopback. Then a minute in which nothing happens, and a restart.

Prints JSON. Times depend on the API server's share of the cores: compare them with the bare Jobs' beside them.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from scale_clients import Answering, Clients, Operator, PodCount

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.builders import NAMES, manifest  # noqa: E402
from tests.cluster.audit import Request  # noqa: E402
from tests.cluster.plane import ControlPlane  # noqa: E402

from pcmoe_operator.objects.inputs import Inputs  # noqa: E402
from pcmoe_operator.objects.jobs import jobs  # noqa: E402
from pcmoe_operator.objects.names import Owner  # noqa: E402
from pcmoe_operator.plan import make_plan  # noqa: E402
from pcmoe_operator.settings import Settings  # noqa: E402
from pcmoe_operator.spec import parse  # noqa: E402

PARTICIPANTS = 4
NODES = 20
USER = "pcmoe-operator"
NAMESPACE = "scale"
WRITES = ("create", "update", "patch", "delete", "deletecollection")
SETTINGS = {
    "namespaces": [NAMESPACE],
    "nodeImage": "node",
    "operatorImage": "operator",
    "leaseNamespace": NAMESPACE,
}
VOLUMES = {
    "dataset": {"image": {"reference": "none"}},
    "checkpoint": {"persistentVolumeClaim": {"claimName": "shared"}},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--consortia", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--clients", type=int, default=20, help="that create at once (default 20)")
    parser.add_argument(
        "--idle", type=float, default=60.0, help="seconds of rest that are looked at (default 60)"
    )
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="pcmoe-scale-", ignore_cleanup_errors=True) as folder:
        result = measured(Path(folder), options.consortia, options.clients, options.idle)
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def measured(folder: Path, count: int, clients: int, idle: float) -> dict[str, Any]:
    """All of it, on a control plane of its own."""
    pods = str(count * (PARTICIPANTS + 1) // NODES + 50)
    capacity = {"cpu": "1000000", "memory": "10000000Gi", "pods": pods, "nvidia.com/gpu": pods}
    with (
        Answering(),
        ControlPlane(folder, fake_nodes=NODES, capacity=capacity, pod_range="127.128.0.0/9") as plane,
        Clients(plane.kubeconfig_for("client", ["system:masters"]), clients) as creators,
    ):
        _prepare(plane)
        bare = _bare_jobs(plane, creators, count)
        say(f"bare Jobs: all pods run after {bare['secondsToAllRunning']} s")
        operated = _consortia(plane, creators, count, idle)
    ratio = operated["secondsToAllReleased"] / bare["secondsToAllRunning"]
    return {
        "consortia": count,
        "participants": PARTICIPANTS,
        "clients": clients,
        "cores": os.cpu_count(),
        "bareJobs": bare,
        "operator": operated,
        "timeToAllReleasedOverBareJobs": round(ratio, 2),
    }


def _prepare(plane: ControlPlane) -> None:
    plane.kubectl("create", "namespace", NAMESPACE)
    plane.define(yaml.safe_load((ROOT / "manifests" / "crd.yaml").read_text()))
    volume = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "manual",
        "hostPath": {"path": "/nowhere"},
        "claimRef": {"namespace": NAMESPACE, "name": "shared"},
    }
    claim = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "manual",
        "volumeName": "shared",
        "resources": {"requests": {"storage": "1Gi"}},
    }
    plane.apply(
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "shared"}, "spec": volume}
    )
    plane.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "shared"}, "spec": claim},
        namespace=NAMESPACE,
    )


def _consortium(number: int) -> dict[str, Any]:
    local = [{"name": name, "gpus": 1, "volumes": VOLUMES} for name in NAMES[:PARTICIPANTS]]
    name = f"c{number:04}"
    return manifest(PARTICIPANTS, {"metadata.name": name, "agreement.id": name, "local": local})


# Bare Jobs


def _bare_jobs(plane: ControlPlane, creators: Clients, count: int) -> dict[str, Any]:
    """The Jobs of all consortia, made by the clients themselves, in the namespace `bare`."""
    plane.kubectl("create", "namespace", "bare")
    settings = Settings.model_validate_json(json.dumps(SETTINGS))
    bodies = []
    for number in range(count):
        raw = _consortium(number)
        consortium = parse(raw)
        inputs = Inputs(
            owner=Owner(name=raw["metadata"]["name"], namespace="bare", uid="0"),
            consortium=consortium,
            plan=make_plan(consortium),
            settings=settings,
        )
        for made in jobs(inputs, suspend=False):
            made["metadata"].pop("ownerReferences")
            _without_volumes(made["spec"]["template"]["spec"])
            bodies.append(made)
    before = len(plane.requests())
    began = time.monotonic()
    with PodCount(plane.kubeconfig, "bare") as running:
        creators.create("/apis/batch/v1/namespaces/bare/jobs", bodies)
        running.reach(len(bodies))
    seconds = time.monotonic() - began
    requests = plane.requests()[before:]
    plane.kubectl("delete", "namespace", "bare", "--wait=false")
    plane.kubectl("delete", "jobs", "--all", "-n", "bare", "--cascade=foreground", seconds=600)
    return {
        "jobs": len(bodies),
        "secondsToAllRunning": round(seconds, 1),
        "apiRequestsPerConsortium": round(len(requests) / count, 1),
    }


def _without_volumes(pod: dict[str, Any]) -> None:
    """Nothing that a bare Job's pod would wait for."""
    pod["volumes"] = []
    pod["containers"][0]["volumeMounts"] = []


# Consortia


def _consortia(plane: ControlPlane, creators: Clients, count: int, idle: float) -> dict[str, Any]:
    settings = plane.folder / "settings.json"
    settings.write_text(json.dumps(SETTINGS))
    operator = Operator(
        plane.kubeconfig_for(USER, ["system:masters"]), settings, plane.folder / "operator.log"
    )
    try:
        operator.start()
        operator.until_leading()
        start = len(plane.requests(USER))
        before = len(plane.requests())
        began = time.monotonic()
        with PodCount(plane.kubeconfig, NAMESPACE) as running:
            path = f"/apis/pcmoe.dev/v1alpha1/namespaces/{NAMESPACE}/pcmoeconsortia"
            creators.create(path, [_consortium(number) for number in range(count)])
            running.reach(count * (PARTICIPANTS + 1))
        released = time.monotonic() - began
        _until_state(plane, count, "Running")
        shown = time.monotonic() - began
        used = operator.used()
        own, everybody = plane.requests(USER)[start:], plane.requests()[before:]
        say(f"consortia: all released after {released:.1f} s, all shown as Running after {shown:.1f} s")
        rest = _rest(plane, idle)
        again = _restart(plane, operator)
    finally:
        operator.kill()
    return {
        "secondsToAllReleased": round(released, 1),
        "secondsToAllShownRunning": round(shown, 1),
        "requestsPerConsortium": round(len(own) / count, 1),
        "writesPerConsortium": _per_kind(own, count),
        "apiRequestsPerConsortium": round(len(everybody) / count, 1),
        "refused": dict(Counter(str(each.code) for each in own if each.code >= 400)),
        "cpuSeconds": used.cpu_seconds,
        "peakMiB": used.peak_mib,
        "rest": rest,
        "restart": again,
    }


def _per_kind(requests: Sequence[Request], count: int) -> dict[str, float]:
    kinds = Counter(each.resource for each in requests if each.verb in WRITES and each.code < 400)
    return {kind: round(number / count, 2) for kind, number in sorted(kinds.items())}


def _until_state(plane: ControlPlane, count: int, state: str) -> None:
    end = time.monotonic() + 600
    while True:
        states = plane.kubectl(
            "get", "pcmoe", "-n", NAMESPACE, "-o", "jsonpath={.items[*].status.state}", seconds=120
        ).split()
        if states.count(state) == count:
            return
        if time.monotonic() > end:
            raise TimeoutError(f"states after ten minutes: {Counter(states)}")
        time.sleep(2)


def _rest(plane: ControlPlane, seconds: float) -> dict[str, Any]:
    """Nothing happens for a while."""
    time.sleep(5)
    before = len(plane.requests(USER))
    time.sleep(seconds)
    return {"seconds": seconds, "requests": _kinds(plane.requests(USER)[before:])}


def _restart(plane: ControlPlane, operator: Operator) -> dict[str, Any]:
    """Killed and started again: how long until it has nothing left to do, and what it asked for."""
    operator.kill()
    before = len(plane.requests(USER))
    began = time.monotonic()
    operator.start()
    operator.until_leading()
    leading = time.monotonic() - began
    busy = operator.busy_seconds(10.0)
    requests = plane.requests(USER)[before:]
    return {
        "secondsToLead": round(leading, 1),
        "secondsBusyAfterThat": round(busy, 1),
        "cpuSeconds": operator.used().cpu_seconds,
        "peakMiB": operator.used().peak_mib,
        "requests": _kinds(requests),
    }


def _kinds(requests: Sequence[Request]) -> dict[str, int]:
    return dict(sorted(Counter(f"{each.verb} {each.resource}" for each in requests).items()))


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
