"""The chart installed on a real node, and a consortium on it as a person with kubectl sees it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster import build
from tests.cluster.errors import ClusterError
from tests.cluster.plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.e2e import images
from tests.e2e.machine import Machine
from tests.e2e.phases import say
from tests.e2e.pilot import CONSORTIUM, PARTICIPANTS, REPOSITORY

CHART = REPOSITORY / "charts" / "pcmoe"
RELEASE = "pcmoe"
SYSTEM = "pcmoe-system"
"""The operator's namespace."""
HELM_SECONDS = 180.0
REPORT_SECONDS = 240.0
GONE_SECONDS = 120.0
PARTICIPANT = "pcmoe.dev/participant"
PASSING = ("events", "endpoints", "endpointslices")
"""Kinds that come and go by themselves, or follow others a little later."""


class Installed:
    """One namespace with consortia, and the operator in another.

    Args:
        plane: The control plane.
        machine: Its node.
        namespace: Where consortia are.
    """

    def __init__(self, plane: ControlPlane, machine: Machine, namespace: str) -> None:
        self.plane, self.machine, self.namespace = plane, machine, namespace
        self._helm = build.ensure("helm")["helm"]

    def helm(self, *args: str | Path) -> str:
        """Run helm on the release's namespace."""
        command = [str(self._helm), "--namespace", SYSTEM, *map(str, args)]
        folders = {
            f"HELM_{kind}_HOME": str(self.plane.folder / "helm") for kind in ("CACHE", "CONFIG", "DATA")
        }
        environment = {
            **os.environ,
            **folders,
            "KUBECONFIG": str(self.plane.kubeconfig),
            "NO_PROXY": "10.0.0.0/8",
        }
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=HELM_SECONDS, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}\n{self.dump()}"
        return done.stdout

    def values(self, tag: str = images.TAG) -> list[str]:
        """What this cluster needs to be told: images that are there already, and where consortia are."""
        told = [f"watchNamespaces={{{self.namespace}}}"]
        for part, name in (("operator", images.OPERATOR), ("node", images.NODE)):
            told += [
                f"{part}.image.repository={name}",
                f"{part}.image.tag={tag}",
                f"{part}.image.pullPolicy=Never",
            ]
        return [f"--set={each}" for each in told]

    def status(self) -> dict[str, Any]:
        """The consortium's status."""
        found: dict[str, Any] = self.plane.read("pcmoe", CONSORTIUM, "-n", self.namespace).get("status", {})
        return found

    def until(self, what: str, true: Callable[[dict[str, Any]], Any], within: float) -> dict[str, Any]:
        """Wait for a status; all that there is to see is told when it doesn't come."""
        ends = ("Failed", "Invalid")

        def looked() -> dict[str, Any] | None:
            found = self.status()
            assert true(found) or found.get("state") not in ends, f"{what}: {json.dumps(found, indent=1)}"
            return found if true(found) else None

        with self.explained():
            return eventually(what, looked, within=within, every=0.5)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Tell all that there is to see when something goes wrong."""
        try:
            yield
        except (AssertionError, ClusterError):
            say(self.dump())
            raise

    def pods(self) -> dict[str, dict[str, Any]]:
        """Pods by participant, without those that are being deleted; the coordinator's is ''."""
        found = {}
        for pod in self.plane.pods(self.namespace):
            if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] in (
                "Pending",
                "Running",
            ):
                found[pod["metadata"]["labels"].get(PARTICIPANT, "")] = pod
        return found

    def succeeded(self, participant: str, within: float) -> dict[str, Any]:
        """A participant's only pod, once it has ended well: a moment after its last round is committed."""

        def only() -> dict[str, Any] | None:
            [found] = self.plane.pods(self.namespace, f"{PARTICIPANT}={participant}")
            return found if found["status"]["phase"] == "Succeeded" else None

        with self.explained():
            return eventually(f"{participant} succeeded", only, within=within)

    def table(self) -> dict[str, str]:
        """What `kubectl get pcmoe` prints of the consortium, by column."""
        printed = self.plane.kubectl("get", "pcmoe", CONSORTIUM, "-n", self.namespace)
        say(printed.rstrip())
        head, row = printed.splitlines()[:2]
        return dict(zip(head.split(), row.split(), strict=True))

    def pcmoe(self, *args: str) -> str:
        """What `pcmoe` prints about this namespace."""
        command = [str(Path(sys.executable).with_name("pcmoe")), *args, "--namespace", self.namespace]
        environment = {**os.environ, "KUBECONFIG": str(self.plane.kubeconfig), "NO_PROXY": "10.0.0.0/8"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=REPORT_SECONDS, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}\n{self.dump()}"
        say(f"{done.stderr}{done.stdout}".rstrip())
        return done.stdout

    def report(self, folder: Path, *options: str) -> dict[str, Any]:
        """The figures that `pcmoe report` finds of the consortium."""
        self.pcmoe("report", "--cluster", CONSORTIUM, "--output", str(folder), *options)
        found: dict[str, Any] = json.loads((folder / "report.json").read_text())
        return found

    def objects(self, namespace: str | None = None) -> set[str]:
        """Every object of a namespace, or of the cluster, as kind and name."""
        scopes = {"true": ["--namespace", namespace] if namespace else ["--all-namespaces"]}
        if namespace is None:
            scopes["false"] = []
        shape = 'jsonpath={range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name}{"\\n"}{end}'
        found: set[str] = set()
        for namespaced, where in scopes.items():
            asked = ("api-resources", "--verbs=list", f"--namespaced={namespaced}", "-o", "name")
            kinds = [each for each in self.plane.kubectl(*asked).split() if each.split(".")[0] not in PASSING]
            found.update(self.plane.kubectl("get", ",".join(kinds), *where, "-o", shape).split())
        return found

    def until_only(self, expected: set[str], namespace: str | None = None) -> None:
        """Wait until these objects are there and no others; the difference is told when it doesn't come."""
        found: set[str] = set()

        def same() -> bool:
            found.clear()
            found.update(self.objects(namespace))
            return found == expected

        try:
            eventually("only what should be there", same, within=GONE_SECONDS, every=1)
        except ClusterError:
            say(self.dump())
            raise AssertionError(f"left: {found - expected}; missing: {expected - found}") from None

    def dump(self) -> str:
        """All that helps to see what is wrong."""
        parts = [
            self._shown("get", "pcmoe,pods,jobs,deployments,replicasets,pvc,services", "-A", "-o", "wide"),
            self._shown("get", "pcmoe", "-A", "-o", "jsonpath={.items[*].status}"),
            self._shown("get", "events", "-A", "--sort-by=.lastTimestamp"),
        ]
        for namespace in (self.namespace, SYSTEM):
            for name in self._shown("get", "pods", "-n", namespace, "-o", "name").split():
                parts.append(f"logs of {name}:\n{self._shown('logs', name, '-n', namespace, '--tail=30')}")
        return "\n\n".join([*parts, self.machine.tails()])

    def _shown(self, *args: str) -> str:
        try:
            return self.plane.kubectl(*args)
        except ClusterError as error:
            return str(error)


def participants(pods: Mapping[str, dict[str, Any]]) -> list[str]:
    """Those that have a running pod."""
    return [name for name in PARTICIPANTS if pods.get(name, {}).get("status", {}).get("phase") == "Running"]


def round_of(status: Mapping[str, Any]) -> int:
    """How many rounds are committed."""
    return int(status.get("round", "0/0").partition("/")[0])
