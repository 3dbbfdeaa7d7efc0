"""`pcmoe report --cluster` on a real API server: the proxy to a running pod, the pod that reads a volume, its log.

Only the kubelet is played: pods run nothing, and the log that it would serve comes from a server of the test's own.
"""

import io
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.authority import Authority
from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.integration.operating import Operated, operated
from tests.unit.fake_node import round_record

from pcmoe_node.journal import Journal
from pcmoe_node.journal_print import print_journal

READER = "pcmoe.dev/report"
PCMOE = Path(sys.executable).with_name("pcmoe")
SECONDS = 60.0
READ_ONLY = [
    {"apiGroups": ["pcmoe.dev"], "resources": ["pcmoeconsortia"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["pods", "events"], "verbs": ["get", "list"]},
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list"]},
]


class Served:
    """Answers GET at an address, always the same; keeps the paths."""

    def __init__(self, host: str, certificate: tuple[Path, Path] | None = None) -> None:
        self.answer = b"{}"
        self.paths: list[str] = []
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.paths.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(served.answer)))
                self.end_headers()
                self.wfile.write(served.answer)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer((host, 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


class Reported(Operated):
    """A consortium whose pods answer at a port of this test's own."""

    status_port = 0

    def settings(self) -> dict[str, Any]:
        """What the operator is told."""
        return super().settings() | {"statusPort": self.status_port}

    def move(self, participant: str, address: str) -> None:
        """Give a running pod another address."""
        patch = json.dumps({"status": {"podIP": address, "podIPs": [{"ip": address}]}})
        name = self.pods()[participant]["metadata"]["name"]
        where = ("-n", self.namespace, "--subresource=status", "--type=merge", "-p", patch)
        self.plane.kubectl("patch", "pod", name, *where)

    def end(self, participant: str) -> None:
        """Let a participant's pod end well."""
        self.annotate(participant, outcome="succeed")

        def ended() -> bool:
            pods = self.plane.pods(self.namespace, f"pcmoe.dev/participant={participant}")
            return [pod["status"]["phase"] for pod in pods] == ["Succeeded"]

        eventually(f"end of {participant}", ended, within=SECONDS)

    def readers(self) -> list[dict[str, Any]]:
        """Pods that read volumes."""
        return self.plane.pods(self.namespace, READER)

    def report(self, *arguments: str, kubeconfig: Path | None = None) -> "subprocess.Popen[str]":
        """Start `pcmoe report` on the consortium."""
        command = [str(PCMOE), "report", "--cluster", "pilot", "-n", self.namespace, *arguments]
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig or self.kubeconfig)}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def let_read(self, outcome: str, how_many: int = 1) -> list[dict[str, Any]]:
        """Wait for so many reading pods and let them end so; what they were made as."""

        def running() -> list[dict[str, Any]] | None:
            found = [pod for pod in self.readers() if pod["status"]["phase"] == "Running"]
            return found if len(found) == how_many else None

        found = eventually(f"{how_many} pods that read a volume", running, within=SECONDS)
        for pod in found:
            mark = f"pcmoe.dev/test-outcome={outcome}"
            self.plane.kubectl("annotate", "pod", pod["metadata"]["name"], "-n", self.namespace, mark)
        return found


@pytest.fixture
def pod() -> Iterator[Served]:
    """What answers for a running pod; a test says what."""
    served = Served(own_address())
    yield served
    served.close()


@pytest.fixture
def here(own_plane: ControlPlane, namespace: str, tmp_path: Path, pod: Served) -> Iterator[Reported]:
    """A consortium of two with pods that run, in a namespace of the restricted level."""
    level = "pod-security.kubernetes.io/enforce=restricted"
    own_plane.kubectl("label", "namespace", namespace, level)
    Reported.status_port = pod.port
    with operated(own_plane, namespace, tmp_path, Reported) as found:
        found.apply()
        found.all_pods()
        yield found


@pytest.fixture
def kubelet(own_plane: ControlPlane, tmp_path: Path) -> Iterator[Served]:
    """What the API server takes for the kubelets of all machines: it serves one log."""
    log = io.StringIO()
    print_journal(written(tmp_path / "lyon", rounds=3), log)
    served = Served("127.0.0.1", Authority(tmp_path).server("127.0.0.1"))
    served.answer = log.getvalue().encode()
    ports = {"daemonEndpoints": {"kubeletEndpoint": {"Port": served.port}}}
    machines = [each["metadata"]["name"] for each in own_plane.read("nodes")["items"]]
    try:
        for name in machines:
            point(own_plane, name, {"status": ports})
        yield served
    finally:
        for name in machines:
            point(own_plane, name, {"status": {"daemonEndpoints": None}})
        served.close()


def point(plane: ControlPlane, machine: str, patch: dict[str, Any]) -> None:
    """Tell the API server where a machine's kubelet is."""
    plane.kubectl("patch", "node", machine, "--subresource=status", "--type=merge", "-p", json.dumps(patch))


def written(folder: Path, rounds: int) -> Path:
    """A node's journal."""
    journal = Journal(folder)
    for number in range(rounds):
        journal.round(round_record(number, ["berlin", "lyon"]) | {"gpus": 1})
    journal.event("ViewEntered", "view 1 begins after round 0")
    return folder


def own_address() -> str:
    """An address of this machine that is not the loopback: the API server opens no proxy to that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.connect(("192.0.2.1", 9))  # reserved for documentation; nothing is sent
        address = str(found.getsockname()[0])
    assert not address.startswith("127."), "this test needs a network interface beside the loopback"
    return address


def finish(process: "subprocess.Popen[str]", code: int = 0) -> tuple[str, str]:
    """What a command printed once it has ended as it should."""
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == code, f"{process.returncode}: {out}\n{err}"
    return out, err


def test_a_report_is_made_of_a_running_pod_and_of_the_volume_of_one_that_is_gone(
    here: Reported, pod: Served, kubelet: Served, tmp_path: Path
) -> None:
    # The operator asks it for its status too, and finds nothing in this that it knows.
    pod.answer = Journal(written(tmp_path / "berlin", rounds=4)).report("berlin")
    here.move("berlin", own_address())
    here.end("lyon")
    asked = here.report("--output", str(tmp_path / "out"))
    [made] = here.let_read("succeed")
    out, err = finish(asked)
    assert "Not in the report" not in err
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in out
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {name: len(own["rounds"]) for name, own in found["loss"].items()} == {"berlin": 4, "lyon": 3}
    assert {e["who"] for e in found["events"]} >= {"berlin", "lyon", "consortium"}
    assert found["gpuHours"]["participants"]["berlin"]["trained"] is not None
    assert found["gpuHours"]["participants"]["lyon"]["held"] is not None
    assert "/report" in pod.paths
    assert made["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == "pilot.lyon"
    assert made["metadata"]["ownerReferences"][0]["name"] == "pilot"
    assert [path.partition("?")[0] for path in kubelet.paths] == [
        f"/containerLogs/{here.namespace}/{made['metadata']['name']}/node"
    ]
    assert here.readers() == []


def test_what_a_reading_pod_left_unsaid_is_told_and_the_pod_is_gone(here: Reported, kubelet: Served) -> None:
    here.end("berlin")
    here.end("lyon")
    asked = here.report("--json")
    here.let_read("fail:66", how_many=2)
    out, _ = finish(asked)
    found = json.loads(out)
    assert set(found["leftOut"]) == {"berlin", "lyon"}
    assert "the pod that reads its volume ended with 66" in found["leftOut"]["lyon"]
    assert here.readers() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_interrupts_it_leaves_no_pod(here: Reported, number: signal.Signals) -> None:
    here.end("lyon")
    here.end("berlin")
    asked = here.report()
    eventually("both pods that read", lambda: len(here.readers()) == 2 or None, within=SECONDS)
    asked.send_signal(number)
    finish(asked, 130)
    eventually("no pod that reads", lambda: not here.readers() or None, within=SECONDS)


def test_refused_rights_and_a_quota_are_told_and_the_report_is_made(here: Reported, tmp_path: Path) -> None:
    here.end("lyon")
    account = f"system:serviceaccount:{here.namespace}:default"
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "reader"}}
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": here.namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    here.plane.apply(
        json.dumps({**role, "kind": "Role", "rules": READ_ONLY}),
        json.dumps({**role, "kind": "RoleBinding", "subjects": [subject], "roleRef": reference}),
        namespace=here.namespace,
    )
    reader = here.plane.kubeconfig_for(account)
    out, err = finish(here.report("--output", str(tmp_path / "out"), kubeconfig=reader))
    left_out = json.loads((tmp_path / "out" / "report.json").read_text())["leftOut"]
    assert "RBAC refuses" in left_out["lyon"] and "create pods" in left_out["lyon"]
    assert "get pods/proxy" in left_out["berlin"] and "create pods" in left_out["berlin"]
    assert "Not in the report: lyon" in err and "Report: " in out

    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}}
    here.plane.apply(json.dumps({**quota, "spec": {"hard": {"pods": "0"}}}), namespace=here.namespace)

    def refused() -> bool:
        out, _ = finish(here.report("--json"))
        return "exceeded quota" in json.loads(out)["leftOut"]["lyon"]

    eventually("the quota", refused, within=SECONDS)
    assert here.readers() == []


def test_a_consortium_that_isnt_there_is_told(here: Reported, tmp_path: Path) -> None:
    command = [str(PCMOE), "report", "--cluster", "pilo", "-n", here.namespace]
    done = subprocess.run(
        command,
        env={**os.environ, "KUBECONFIG": str(here.kubeconfig)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 66
    assert "no consortium pilo in namespace" in done.stderr and "pilot" in done.stderr
    assert list(tmp_path.glob("*-report")) == []
