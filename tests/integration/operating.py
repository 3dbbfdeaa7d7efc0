"""The operator as a process on a real control plane, volumes that bind, and pods that answer as a test wants."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import yaml
from tests.builders import manifest
from tests.cluster.plane import ControlPlane
from tests.cluster.processes import free_ports

from pcmoe_operator.main import AGAIN

CRD = yaml.safe_load((Path(__file__).parents[2] / "manifests" / "crd.yaml").read_text())
DEADLINE = 60.0
PORT = 9400
ADDRESSES = 1000
"""So many are tried."""
NAMES = ("berlin", "lyon")
VOLUMES = {
    "dataset": {"image": {"reference": "none"}},
    "checkpoint": {"size": "1Gi", "storageClassName": "manual"},
}


Kind = TypeVar("Kind", bound="Operated")


class Answers:
    """Answers `/status` at an address of the loopback for each pod, as told."""

    def __init__(self) -> None:
        self._servers: list[ThreadingHTTPServer] = []
        self._next = 1

    def at(self, status: dict[str, Any]) -> str:
        """A new address that answers with `status`, whatever is in it by then."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(status).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        for _ in range(ADDRESSES):
            self._next += 1
            address = f"127.{os.getpid() % 200 + 20}.{self._next // 250}.{self._next % 250 + 1}"
            try:
                server = ThreadingHTTPServer((address, PORT), Handler)
            except OSError:
                continue
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self._servers.append(server)
            return address
        raise OSError(f"port {PORT} is taken at every address of the loopback")

    def close(self) -> None:
        """Stop all."""
        for server in self._servers:
            server.shutdown()
            server.server_close()


class Operated:
    """One namespace looked after by an operator of its own."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.plane, self.namespace, self._folder = plane, namespace, folder
        self.answers = Answers()
        self.log = folder / "operator.log"
        self.kubeconfig = plane.kubeconfig
        """Whom the operator acts as."""
        self._process: subprocess.Popen[bytes] | None = None
        [self._port] = free_ports(1)
        self._started = 0
        """Where the log of the last start begins."""

    def settings(self) -> dict[str, Any]:
        """What the operator is told."""
        return {
            "namespaces": [self.namespace],
            "nodeImage": "node",
            "operatorImage": "operator",
            "leaseNamespace": self.namespace,
            "leaseSeconds": 6,
            "statusSeconds": 0.5,
            "metricsPort": self._port,
        }

    def start(self) -> None:
        """Start the operator."""
        path = self._folder / "settings.json"
        path.write_text(json.dumps(self.settings()))
        command = [sys.executable, "-m", "pcmoe_operator.main", "--config", str(path)]
        command += ["--kubeconfig", str(self.kubeconfig)]
        with self.log.open("ab") as log:
            self._started = log.tell()
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def revive(self) -> None:
        """Start it again if it ended since it had lost its lease, as a kubelet does: on a busy machine that happens."""
        if self._process is not None and self._process.poll() == AGAIN and self._lost_its_lease():
            self.start()

    @property
    def alive(self) -> bool:
        """Whether the operator's process is there."""
        return self._process is not None and self._process.poll() is None

    def _lost_its_lease(self) -> bool:
        return "is lost" in self.log.read_text()[self._started :]

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(15)

    def until_looked(self) -> None:
        """Wait until the operator that was started last has seen all that is there."""
        end = time.monotonic() + DEADLINE
        while "consortia are there" not in self.log.read_text()[self._started :]:
            assert time.monotonic() < end, self.log.read_text()[self._started :]
            time.sleep(0.1)  # between two looks; the deadline is above

    def apply(self, name: str = "pilot", **overrides: Any) -> None:
        """Apply a consortium of two, with volumes that bind."""
        for participant in NAMES:
            self.plane.apply(volume(self.namespace, name, participant))
        local = [{"name": each, "gpus": 1, "volumes": VOLUMES} for each in NAMES]
        self.plane.apply(
            manifest(
                NAMES,
                {"metadata.name": name, "local": local, "agreement.training.rounds": 4}
                | {key.replace("__", "."): value for key, value in overrides.items()},
            ),
            namespace=self.namespace,
        )

    def change(self, **spec: Any) -> None:
        """Change the consortium's spec, as `kubectl patch` does."""
        patch = json.dumps({"spec": spec})
        self.plane.kubectl("patch", "pcmoe", "pilot", "-n", self.namespace, "--type=merge", "-p", patch)

    def status(self, name: str = "pilot") -> dict[str, Any]:
        """A consortium's status."""
        found: dict[str, Any] = self.plane.read("pcmoe", name, "-n", self.namespace).get("status", {})
        return found

    def until(self, true: Callable[[dict[str, Any]], bool], seconds: float = DEADLINE) -> dict[str, Any]:
        """Wait until the status is as wanted."""
        end = time.monotonic() + seconds
        while True:
            self.revive()
            found = self.status()
            if true(found):
                return found
            assert time.monotonic() < end, f"{json.dumps(found, indent=1)}\n{self.log.read_text()[-3000:]}"
            time.sleep(0.2)  # between two looks; the deadline is above

    def pods(self) -> dict[str, dict[str, Any]]:
        """Living pods by participant; the coordinator's is ''."""
        found = {}
        for pod in self.plane.pods(self.namespace):
            if not pod["metadata"].get("deletionTimestamp"):
                found[pod["metadata"]["labels"].get("pcmoe.dev/participant", "")] = pod
        return found

    def all_pods(self, seconds: float = DEADLINE) -> dict[str, dict[str, Any]]:
        """The same, once everybody has a pod that runs."""
        end = time.monotonic() + seconds
        while True:
            self.revive()
            found = self.pods()
            running = {n: p for n, p in found.items() if p["status"].get("phase") == "Running"}
            if set(running) == {"", *NAMES}:
                return running
            assert time.monotonic() < end, f"{sorted(found)}\n{self.log.read_text()[-3000:]}"
            time.sleep(0.2)  # between two looks; the deadline is above

    def annotate(self, participant: str, **annotations: str) -> None:
        """Steer a pod; see tests/cluster/stages.yaml."""
        name = self.pods()[participant]["metadata"]["name"]
        marks = [f"pcmoe.dev/test-{key.replace('_', '-')}={value}" for key, value in annotations.items()]
        self.plane.kubectl("annotate", "pod", name, "-n", self.namespace, "--overwrite", *marks)

    def answer(self, participant: str, status: dict[str, Any]) -> None:
        """Have a running pod answer with a status, which may be changed later."""
        address = self.answers.at(status)
        name = self.pods()[participant]["metadata"]["name"]
        patch = {"status": {"podIP": address, "podIPs": [{"ip": address}]}}
        self.plane.kubectl(
            "patch",
            "pod",
            name,
            "-n",
            self.namespace,
            "--subresource=status",
            "--type=merge",
            "-p",
            json.dumps(patch),
        )


def volume(namespace: str, consortium: str, participant: str) -> Mapping[str, Any]:
    """A volume for a participant's claim; without saying so it would be any waiting claim's of any test."""
    name = f"{namespace}-{consortium}-{participant}"
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "manual",
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": namespace,
                "name": f"{consortium}.{participant}",
            },
            "hostPath": {"path": f"/nowhere/{name}"},
        },
    }


@contextmanager
def operated(plane: ControlPlane, namespace: str, folder: Path, kind: type[Kind]) -> Iterator[Kind]:
    """A namespace with the CRD there and an operator running."""
    plane.define(CRD)
    found = kind(plane, namespace, folder)
    found.start()
    try:
        yield found
    finally:
        found.kill()
        found.answers.close()


def node(round_number: int, phase: str = "TRAINING", committed: int | None = None) -> dict[str, Any]:
    """What a node says of itself."""
    return {
        "phase": phase,
        "view": 1,
        "round": round_number,
        "rounds": 4,
        "step": 4 * round_number,
        "committed": round_number if committed is None else committed,
        "trainLoss": 2.5,
        "heldOutLoss": 2.25,
        "error": None,
    }


def coordinator(round_number: int, state: str = "RUNNING") -> dict[str, Any]:
    """What the coordinator says of itself."""
    members = [{"name": name, "connected": True, "phase": "TRAINING"} for name in NAMES]
    return {"state": state, "view": 1, "round": round_number, "reason": "", "members": members, "error": None}
