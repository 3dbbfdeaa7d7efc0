"""What the operator costs when there are many consortia, beside the same number of bare Jobs in the same run.

    python benchmarks/operator_scale.py [--consortia 1000] [--clients 20] [--output FILE]

On control planes as the tests build them (etcd, API server, controllers and scheduler of Kubernetes, kwok's nodes), in
one namespace: first the Jobs as the operator would make them, made by the clients; then, on a fresh plane, the
consortia themselves. Then a minute of rest, and a restart. All of it happens in a network namespace of its own, where
every address that a pod may have leads back to this process, which answers `/status`: with addresses of the loopback,
which Endpoints may not have, Kubernetes' controllers would try in vain for ever. Needs `ip` and `unshare`, no root.

Prints JSON. Times depend on the API server's share of the cores: compare them with the bare Jobs' beside them.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from scale_clients import Background, Client, Operator, answer_at_every_address

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
PODS = "10.244.0.0/16"
ALONE = "PCMOE_SCALE_ALONE"
"""Set in the process that is alone in its network namespace."""
USER = "pcmoe-operator"
NAMESPACE = "scale"
WRITES = ("create", "update", "patch", "delete", "deletecollection")
SETTINGS = {
    "namespaces": [NAMESPACE],
    "nodeImage": "node",
    "operatorImage": "operator",
    "leaseNamespace": NAMESPACE,
}
RECORDS = {"image": {"reference": "none"}}


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
    _be_alone()
    with TemporaryDirectory(prefix="pcmoe-scale-", ignore_cleanup_errors=True) as folder:
        result = measured(Path(folder), options.consortia, options.clients, options.idle)
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def _be_alone() -> None:
    """Go on in a network namespace of our own, where all of the pods' addresses are ours."""
    if ALONE not in os.environ:
        root = [] if os.geteuid() == 0 else ["--map-root-user"]
        command = ["unshare", "--net", *root, sys.executable, *sys.argv]
        os.execvpe(command[0], command, os.environ | {ALONE: "1"})
    for command in (["link", "set", "lo", "up"], ["route", "add", "local", PODS, "dev", "lo"]):
        subprocess.run(["ip", *command], check=True)


def measured(folder: Path, count: int, clients: int, idle: float) -> dict[str, Any]:
    """First the bare Jobs, then the consortia, each on a control plane that was started for it."""
    with Background() as background:
        background.run(answer_at_every_address())
        with _plane(folder / "bare", count) as plane:
            bare = _bare_jobs(plane, Crowd(background, plane, clients), count)
        say(f"bare Jobs: all pods run after {bare['secondsToAllRunning']} s")
        with _plane(folder / "operated", count) as plane:
            operated = _consortia(plane, Crowd(background, plane, clients), count, idle)
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


class Crowd:
    """Clients that create at once, and see when all the pods run."""

    def __init__(self, background: Background, plane: ControlPlane, connections: int) -> None:
        self._background = background
        self._client = Client(plane.kubeconfig_for("client", ["system:masters"]), connections)

    def seconds(self, path: str, bodies: Sequence[Mapping[str, Any]], pods: int) -> float:
        """From the first creation until so many pods run in the namespace."""

        async def both() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._client.create(path, bodies))
                tasks.create_task(self._client.until_running(NAMESPACE, pods, say))

        began = time.monotonic()
        self._background.run(both())
        return time.monotonic() - began


@contextmanager
def _plane(folder: Path, count: int) -> Iterator[ControlPlane]:
    """With room for all pods, the CRD, and volumes that all share."""
    pods = str(count * (PARTICIPANTS + 1) // NODES + 50)
    capacity = {"cpu": "1000000", "memory": "10000000Gi", "pods": pods, "nvidia.com/gpu": pods}
    with ControlPlane(folder, fake_nodes=NODES, capacity=capacity, pod_range=PODS) as plane:
        _prepare(plane)
        yield plane


def _prepare(plane: ControlPlane) -> None:
    plane.kubectl("create", "namespace", NAMESPACE)
    plane.define(yaml.safe_load((ROOT / "manifests" / "crd.yaml").read_text()))
    shared = {"accessModes": ["ReadWriteMany"], "storageClassName": "manual"}
    for name in NAMES[:PARTICIPANTS]:
        volume = {
            **shared,
            "capacity": {"storage": "1Gi"},
            "hostPath": {"path": f"/nowhere/{name}"},
            "claimRef": {"namespace": NAMESPACE, "name": name},
        }
        claim = {**shared, "volumeName": name, "resources": {"requests": {"storage": "1Gi"}}}
        head = {"apiVersion": "v1", "metadata": {"name": name}}
        plane.apply({**head, "kind": "PersistentVolume", "spec": volume})
        plane.apply({**head, "kind": "PersistentVolumeClaim", "spec": claim}, namespace=NAMESPACE)


def _consortium(number: int) -> dict[str, Any]:
    local = [
        {"name": name, "gpus": 1, "volumes": {"dataset": RECORDS, "checkpoint": _claim(name)}}
        for name in NAMES[:PARTICIPANTS]
    ]
    name = f"c{number:04}"
    return manifest(PARTICIPANTS, {"metadata.name": name, "agreement.id": name, "local": local})


def _claim(name: str) -> dict[str, Any]:
    """A claim that is there, of all participants by that name."""
    return {"persistentVolumeClaim": {"claimName": name}}


# Bare Jobs


def _bare_jobs(plane: ControlPlane, crowd: Crowd, count: int) -> dict[str, Any]:
    """The Jobs of all consortia, made by the clients themselves."""
    bodies = [job for number in range(count) for job in _jobs_of(number)]
    before = len(plane.requests())
    seconds = crowd.seconds(f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs", bodies, len(bodies))
    requests = plane.requests()[before:]
    return {
        "jobs": len(bodies),
        "secondsToAllRunning": round(seconds, 1),
        "apiRequestsPerConsortium": round(len(requests) / count, 1),
        "apiRequestsPerConsortiumByUser": _per_user(requests, count),
    }


def _jobs_of(number: int) -> list[dict[str, Any]]:
    """As the operator would make them, without what their pods would wait for."""
    raw = _consortium(number)
    consortium = parse(raw)
    inputs = Inputs(
        owner=Owner(name=raw["metadata"]["name"], namespace=NAMESPACE, uid="0"),
        consortium=consortium,
        plan=make_plan(consortium),
        settings=Settings.model_validate_json(json.dumps(SETTINGS)),
    )
    made = jobs(inputs, suspend=False)
    for job in made:
        del job["metadata"]["ownerReferences"]
        job["spec"]["template"]["spec"]["volumes"] = []
        job["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = []
    return made


# Consortia


def _consortia(plane: ControlPlane, crowd: Crowd, count: int, idle: float) -> dict[str, Any]:
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
        path = f"/apis/pcmoe.dev/v1alpha1/namespaces/{NAMESPACE}/pcmoeconsortia"
        bodies = [_consortium(number) for number in range(count)]
        released = crowd.seconds(path, bodies, count * (PARTICIPANTS + 1))
        _until_state(plane, count, "Running")
        shown = time.monotonic() - began
        used = operator.used()
        own, everybody = plane.requests(USER)[start:], plane.requests()[before:]
        say(f"consortia: all released after {released:.1f} s, all shown as Running after {shown:.1f} s")
        rest = _rest(plane, idle)
        again = _restart(plane, operator, count)
    finally:
        operator.kill()
    return {
        "secondsToAllReleased": round(released, 1),
        "secondsToAllShownRunning": round(shown, 1),
        "requestsPerConsortium": round(len(own) / count, 1),
        "writesPerConsortium": _per_kind(own, count),
        "apiRequestsPerConsortium": round(len(everybody) / count, 1),
        "apiRequestsPerConsortiumByUser": _per_user(everybody, count),
        "refused": dict(Counter(str(each.code) for each in own if each.code >= 400)),
        "cpuSeconds": used.cpu_seconds,
        "peakMiB": used.peak_mib,
        "rest": rest,
        "restart": again,
    }


def _per_kind(requests: Sequence[Request], count: int) -> dict[str, float]:
    kinds = Counter(each.resource for each in requests if each.verb in WRITES and each.code < 400)
    return {kind: round(number / count, 2) for kind, number in sorted(kinds.items())}


def _per_user(requests: Sequence[Request], count: int) -> dict[str, float]:
    users = Counter(each.user.rpartition(":")[2] for each in requests)
    return {user: round(number / count, 1) for user, number in users.most_common() if number >= count}


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


def _restart(plane: ControlPlane, operator: Operator, count: int) -> dict[str, Any]:
    """Killed and started again: how long until it has looked at all consortia, and what it asked for until then."""
    operator.kill()
    before = len(plane.requests(USER))
    began = time.monotonic()
    operator.start()
    operator.until_leading()
    leading = time.monotonic() - began
    operator.until_looked(count)
    looked = time.monotonic() - began
    requests = plane.requests(USER)[before:]
    return {
        "secondsToLead": round(leading, 1),
        "secondsToAllLookedAt": round(looked, 1),
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
