"""A real node: containerd, kubelet, kube-proxy, and CoreDNS for its pods. Only within what sandbox.py sets up."""

import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.cluster import build
from tests.cluster.plane import ControlPlane
from tests.cluster.processes import Process
from tests.cluster.waiting import eventually
from tests.e2e import images
from tests.e2e.sandbox import ADDRESS, POD_RANGE

READY_SECONDS = 90.0
IMPORT_SECONDS = 300.0
NAME = "machine-1"
GPUS = 4

CONTAINERD = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
oom_score = 0
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# Without CAP_SYS_RESOURCE, as in a container, nobody may lower it, and no sandbox would start.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{folder}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
"""

NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        # A link of its own for every pod: all traffic is routed, so that Services work without a bridge's filter.
        {
            "type": "ptp",
            "mtu": 1500,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.244.0.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
    ],
}

NAMES = """
.:53 {{
    bind {address}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
        ttl 5
    }}
}}
"""


class Machine:
    """One node, from `__enter__` to `__exit__`.

    Args:
        plane: Whose node it becomes; it must listen at `sandbox.ADDRESS`.
        folder: For its data and logs. The logs stay.
        layout: Images to have, an OCI layout.
        control_group: For its pods.
    """

    def __init__(self, plane: ControlPlane, folder: Path, layout: Path, control_group: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._plane = plane
        self._layout = layout
        self._group = control_group
        self._socket = folder / "containerd.sock"
        self._programs = build.ensure(*build.NODE)
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        """Start all, and wait until pods can be scheduled."""
        try:
            self._start_containerd()
            self._start_kubelet()
            self._start_proxy()
            self._start_names()
            eventually("the node Ready", self._ready, within=READY_SECONDS)
            self.advertise({"nvidia.com/gpu": str(GPUS)})
            return self
        except BaseException:
            self._stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def advertise(self, capacity: Mapping[str, str]) -> None:
        """Have the node say that it has more resources, as a device plugin would."""
        patch = {"status": {"capacity": dict(capacity)}}
        arguments = ("--subresource=status", "--type=merge", "-p", json.dumps(patch))
        self._plane.kubectl("patch", "node", NAME, *arguments)

        def allocatable() -> bool:
            found = self._plane.read("node", NAME)["status"]["allocatable"]
            return all(found.get(key) == value for key, value in capacity.items())

        eventually("the node's GPUs", allocatable, within=READY_SECONDS)

    def kill(self, pod: Mapping[str, Any], number: int) -> None:
        """Send a signal to the first process of a pod's container, as seen from the machine."""
        wanted = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        self.ctr("tasks", "kill", "--signal", str(number), wanted)

    def ctr(self, *args: str, seconds: float = 60.0) -> str:
        """Run containerd's own client."""
        command = ["ctr", "--address", str(self._socket), "--namespace", "k8s.io", *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        assert done.returncode == 0, f"ctr {' '.join(args)}: {done.stderr}"
        return done.stdout

    def tails(self) -> str:
        """The ends of all logs."""
        return "\n".join(process.tail() for process in self._processes)

    def _start_containerd(self) -> None:
        (self.folder / "cni").mkdir()
        (self.folder / "cni" / "10-pods.conflist").write_text(json.dumps(NETWORK))
        config = self.folder / "containerd.toml"
        config.write_text(CONTAINERD.format(folder=self.folder, socket=self._socket, pause=images.PAUSE))
        process = self._run("containerd", shutil.which("containerd") or "containerd", "--config", config)
        process.wait_ready(self._answers, READY_SECONDS)
        archive = self.folder / "images.tar"
        subprocess.run(
            ["tar", "-C", str(self._layout), "-cf", str(archive), "."], check=True, timeout=IMPORT_SECONDS
        )
        self.ctr("images", "import", str(archive), seconds=IMPORT_SECONDS)
        archive.unlink()

    def _answers(self) -> bool:
        command = ["ctr", "--address", str(self._socket), "version"]
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0

    def _start_kubelet(self) -> None:
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": ADDRESS,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self._group,
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": [],
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            "podLogsDir": str(self.folder / "pods"),
            "clusterDNS": [ADDRESS],
            "clusterDomain": "cluster.local",
            "resolvConf": str(self._write("resolv.conf", f"nameserver {ADDRESS}\n")),
            "syncFrequency": "10s",
        }
        kubeconfig = self._plane.kubeconfig_for(f"system:node:{NAME}", ["system:nodes"])
        self._run(
            "kubelet",
            self._programs["kubelet"],
            f"--config={self._write('kubelet.json', json.dumps(config))}",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={NAME}",
            f"--node-ip={ADDRESS}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--cert-dir={self.folder / 'certificates'}",
        )

    def _start_proxy(self) -> None:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clusterCIDR": POD_RANGE,
            "hostnameOverride": NAME,
            "bindAddress": ADDRESS,
            "healthzBindAddress": f"{ADDRESS}:10256",
            "metricsBindAddress": f"{ADDRESS}:10249",
            "clientConnection": {"kubeconfig": str(self._plane.kubeconfig_for("system:kube-proxy"))},
            # Zero leaves the machine's own settings as they are.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }
        self._run(
            "kube-proxy",
            self._programs["kube-proxy"],
            f"--config={self._write('kube-proxy.json', json.dumps(config))}",
        )

    def _start_names(self) -> None:
        text = NAMES.format(address=ADDRESS, kubeconfig=self._plane.kubeconfig)
        self._run("coredns", self._programs["coredns"], "-conf", self._write("Corefile", text))

    def _ready(self) -> bool:
        for process in self._processes:
            assert process.running, process.tail()
        found = self._plane.read("nodes")["items"]
        ready = {"type": "Ready", "status": "True"}
        return any(
            "taints" not in node["spec"]
            and any(ready.items() <= each.items() for each in node["status"].get("conditions", []))
            for node in found
        )

    def _stop(self) -> None:
        """End kubelet first, so that it starts nothing again; then whatever runs in containers, and its mounts."""
        for process in reversed(self._processes):
            if process.name != "containerd":
                process.kill()
        if self._processes and self._answers():
            for task in self.ctr("tasks", "list", "--quiet").split():
                command = ["ctr", "--address", str(self._socket), "--namespace", "k8s.io", "tasks", "kill"]
                subprocess.run(
                    [*command, "--signal", "9", task], capture_output=True, timeout=30, check=False
                )
            self._processes[0].kill()
        self._processes.clear()
        deadline = time.monotonic() + 20.0
        while (left := self._mounts()) and time.monotonic() < deadline:
            for place in left:
                subprocess.run(["umount", "--lazy", place], capture_output=True, timeout=30, check=False)
        for waste in ("root", "state", "kubelet"):
            shutil.rmtree(self.folder / waste, ignore_errors=True)

    def _mounts(self) -> list[str]:
        places = (line.split()[1] for line in Path("/proc/mounts").read_text().splitlines())
        return sorted((place for place in places if place.startswith(f"{self.folder}/")), reverse=True)

    def _run(self, name: str, program: str | Path, *flags: str | Path) -> Process:
        process = Process(name, [program, *flags], self.folder)
        self._processes.append(process)
        return process

    def _write(self, file: str, text: str) -> Path:
        path = self.folder / file
        path.write_text(text)
        return path
