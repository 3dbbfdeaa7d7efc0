"""A real Kubernetes control plane for a test: etcd, API server, controllers, scheduler, and fake nodes. No root.

    with ControlPlane(tmp_path, fake_nodes=2) as plane, plane.namespace() as namespace:
        plane.kubectl("get", "nodes")

All listen on the loopback, on ports of their own, so that many run at once. What the fake nodes do: `stages.yaml`.
"""

import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from tests.cluster import audit, build
from tests.cluster.authority import Authority, write_key, write_kubeconfig
from tests.cluster.cluster import SERVICE_ACCOUNT, Cluster
from tests.cluster.errors import ProcessError
from tests.cluster.processes import Process, answers, free_ports
from tests.cluster.waiting import eventually

READY_SECONDS = 60.0
"""Deadline of each process; all together take 4 s on an idle machine."""
ATTEMPTS = 3
"""Somebody else may take a port between our choice of it and its use."""
USERS = {
    "admin": "system:masters",
    "kwok": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
}
"""Who has a token from the start, and the group."""
CAPACITY = {"cpu": "32", "memory": "256Gi", "pods": "110", "nvidia.com/gpu": "8"}
FAKE = "kwok.x-k8s.io/node"
LOOPBACK = "127.0.0.1"
SERVICES = "10.96.0.0/16"
SERVICE = "10.96.0.1"
"""The address of the Service `kubernetes`: the first of the range."""
STAGES = Path(__file__).with_name("stages.yaml")


class ControlPlane(Cluster):
    """Its own cluster, from `__enter__` to `__exit__`.

    Args:
        folder: For its data and logs; made if it isn't there. The logs stay.
        fake_nodes: How many nodes to begin with.
        capacity: Of each.
        pod_range: Where their pods' addresses come from.
        address: Where the API server listens; only on another than the loopback can pods reach it.
        definitions: Files of CustomResourceDefinitions that are there from the start.
        version: Which Kubernetes it behaves as, such as 1.33, by its own emulation; its own if empty.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fake_nodes: int = 0,
        capacity: Mapping[str, str] = CAPACITY,
        pod_range: str = "10.244.0.0/16",
        address: str = LOOPBACK,
        definitions: Sequence[Path] = (),
        version: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / "admin.kubeconfig", folder)
        self.url = ""
        self.processes: list[Process] = []
        """What runs, in the order of its start."""
        self._fake_nodes = fake_nodes
        self._capacity = capacity
        self._pod_range = pod_range
        self._address_of_server = address
        self._definitions = definitions
        self._emulated = [f"--emulated-version={version}"] if version else []
        self._programs = build.ensure(*build.PLANE)
        self._authority = Authority(folder)
        self._certificate, self._key = self._authority.server(address, SERVICE)
        self._accounts = folder / "service-accounts.key"
        write_key(self._accounts)
        self._tokens = {user: secrets.token_urlsafe() for user in USERS}
        self._audit_log = folder / "audit.jsonl"

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            ProcessError: one of its processes ended or was not ready in time.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._start()
                return self
            except BaseException as error:
                self._stop()
                taken = isinstance(error, ProcessError) and "address already in use" in str(error)
                if not taken or attempt == ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def add_nodes(
        self, count: int, capacity: Mapping[str, str] = CAPACITY, prefix: str = "fake"
    ) -> list[str]:
        """Add fake nodes and wait until pods can be scheduled on them; returns their names."""
        if all(process.name != "kwok" for process in self.processes):
            self._start_kwok()
        names = [f"{prefix}-{number}" for number in range(count)]
        nodes = [_node(name, capacity) for name in names]
        self.kubectl("create", "-f", "-", given={"apiVersion": "v1", "kind": "List", "items": nodes})

        def all_open() -> bool:
            nodes = self.read("nodes")["items"]
            return all(_is_open(node) for node in nodes if node["metadata"]["name"] in names)

        eventually(f"{count} fake nodes open for pods", all_open, within=READY_SECONDS)
        return names

    def kubeconfig_for(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig for anybody: a service account as in `Cluster`, others by a client certificate."""
        if user.startswith(SERVICE_ACCOUNT):
            return super().kubeconfig_for(user, groups)
        file = self._fresh("client")
        certificate, key = self._authority.client(user, groups, file.name)
        user_entry = {"client-certificate": str(certificate), "client-key": str(key)}
        return write_kubeconfig(self._fresh("kubeconfig"), self.url, self._authority.certificate, user_entry)

    def restart_apiserver(self) -> None:
        """Kill the API server, and start it again where it was."""
        [old] = [process for process in self.processes if process.name == "kube-apiserver"]
        old.kill()
        self.processes[self.processes.index(old)] = fresh = old.again()
        self._wait_answer(fresh, f"{self.url}/readyz", self._tokens["admin"])

    def requests(self, user: str | None = None) -> list[audit.Request]:
        """What the API server was asked for, by a user or by anybody; see `tests.cluster.audit.read`."""
        return audit.read(self._audit_log, user)

    def _start(self) -> None:
        self._start_apiserver(self._start_etcd())
        # The garbage collector learns of a kind when it starts, or only half a minute later.
        for definition in self._definitions:
            self.define(yaml.safe_load(definition.read_text()))
        self._start_controllers()
        if self._fake_nodes:
            self.add_nodes(self._fake_nodes, self._capacity)

    def _stop(self) -> None:
        for process in reversed(self.processes):
            process.kill()
        self.processes.clear()
        shutil.rmtree(self.folder / "etcd", ignore_errors=True)

    def _run(self, name: str, *flags: str | Path) -> Process:
        process = Process(name, [self._programs[name], *flags], self.folder)
        self.processes.append(process)
        return process

    def _start_etcd(self) -> str:
        # TLS everywhere, so that nobody else who listens on a port can be taken for one of us.
        client, peer = (f"https://127.0.0.1:{port}" for port in free_ports(2))
        process = self._run(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            f"--cert-file={self._certificate}",
            f"--key-file={self._key}",
            f"--peer-cert-file={self._certificate}",
            f"--peer-key-file={self._key}",
            f"--peer-trusted-ca-file={self._authority.certificate}",
        )
        self._wait_answer(process, f"{client}/readyz")
        return client

    def _start_apiserver(self, etcd: str) -> None:
        [port] = free_ports(1)
        address = self._address_of_server
        self.url = f"https://{address}:{port}"
        policy = self._write("audit-policy.json", json.dumps(audit.POLICY))
        rows = (f'{token},{user},{user},"{USERS[user]}"\n' for user, token in self._tokens.items())
        process = self._run(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            f"--etcd-cafile={self._authority.certificate}",
            f"--bind-address={address}",
            f"--advertise-address={address}",
            f"--secure-port={port}",
            # The Service `kubernetes` may not lead to a loopback address: then it leads nowhere.
            f"--endpoint-reconciler-type={'none' if address == LOOPBACK else 'lease'}",
            f"--service-cluster-ip-range={SERVICES}",
            *self._serving(),
            f"--client-ca-file={self._authority.certificate}",
            f"--token-auth-file={self._write('tokens.csv', ''.join(rows))}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={self._accounts}",
            f"--service-account-key-file={self._accounts}",
            "--allow-privileged",
            "--kubelet-preferred-address-types=InternalIP",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self._audit_log}",
            "--profiling=false",
            *self._emulated,
        )
        self._wait_answer(process, f"{self.url}/readyz", self._tokens["admin"])
        self._user_file("admin", self.kubeconfig)

    def _start_controllers(self) -> None:
        ports = free_ports(2)
        controllers = self._run(
            "kube-controller-manager",
            *self._client("system:kube-controller-manager", qps=1000),
            "--use-service-account-credentials",  # without it no controller has any rights
            f"--service-account-private-key-file={self._accounts}",
            f"--root-ca-file={self._authority.certificate}",
            "--concurrent-job-syncs=50",
            "--concurrent-namespace-syncs=20",
            *self._emulated,
            "--bind-address=127.0.0.1",
            f"--secure-port={ports[0]}",
            *self._serving(),
        )
        scheduler = self._run(
            "kube-scheduler",
            *self._emulated,
            *self._client("system:kube-scheduler", qps=1000),
            "--bind-address=127.0.0.1",
            f"--secure-port={ports[1]}",
            *self._serving(),
        )
        for process, port in zip((controllers, scheduler), ports, strict=True):
            self._wait_answer(process, f"https://127.0.0.1:{port}/healthz")

    def _start_kwok(self) -> None:
        [port] = free_ports(1)
        process = self._run(
            "kwok",
            f"--kubeconfig={self._user_file('kwok')}",
            f"--config={STAGES}",
            f"--manage-nodes-with-annotation-selector={FAKE}=fake",
            "--node-ip=127.0.0.1",
            f"--cidr={self._pod_range}",
            "--node-lease-duration-seconds=40",
            f"--server-address=127.0.0.1:{port}",
            *self._serving(),
        )
        self._wait_answer(process, f"https://127.0.0.1:{port}/healthz")

    def _serving(self) -> list[str]:
        """Flags for a server's certificate; each would make itself one otherwise, which takes time."""
        return [f"--tls-cert-file={self._certificate}", f"--tls-private-key-file={self._key}"]

    def _client(self, user: str, qps: int) -> list[str]:
        """Flags for a component that talks to the API server, fast, and is the only one of its kind."""
        return [
            f"--kubeconfig={self._user_file(user)}",
            "--authentication-skip-lookup",  # nobody but us asks it anything
            "--leader-elect=false",
            f"--kube-api-qps={qps}",
            f"--kube-api-burst={2 * qps}",
        ]

    def _user_file(self, user: str, path: Path | None = None) -> Path:
        """A kubeconfig for one of USERS."""
        file = path or self.folder / f"{user.replace(':', '-')}.kubeconfig"
        return write_kubeconfig(file, self.url, self._authority.certificate, {"token": self._tokens[user]})

    def _wait_answer(self, process: Process, url: str, token: str | None = None) -> None:
        process.wait_ready(lambda: answers(url, self._authority.context, token), READY_SECONDS)

    def _write(self, file: str, text: str) -> Path:
        path = self.folder / file
        path.touch(mode=0o600)
        path.write_text(text)
        return path


def _node(name: str, capacity: Mapping[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {FAKE: "fake"},
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
            },
        },
        "status": {"capacity": dict(capacity), "allocatable": dict(capacity)},
    }


def _is_open(node: Mapping[str, Any]) -> bool:
    """Whether the scheduler gives it pods."""
    ready = {"type": "Ready", "status": "True"}
    conditions = node["status"].get("conditions", [])
    return "taints" not in node["spec"] and any(ready.items() <= each.items() for each in conditions)
