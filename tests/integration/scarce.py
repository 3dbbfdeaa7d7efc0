"""A namespace whose consortia may only use machines that a test gives them, one GPU each."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.builders import manifest
from tests.cluster.errors import WaitError
from tests.cluster.plane import CAPACITY, ControlPlane
from tests.cluster.waiting import eventually
from tests.integration.operating import VOLUMES, Operated, volume

ONE_GPU = {**CAPACITY, "nvidia.com/gpu": "1"}
POOL = "pool"


class Scarce(Operated):
    """Looks after consortia that choose their machines by a label."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path, **limits: int) -> None:
        super().__init__(plane, namespace, folder)
        self._limits = limits
        self._nodes: list[str] = []

    def settings(self) -> dict[str, Any]:
        """With limits as short as a test wants."""
        short = {"unschedulableSeconds": 2, "turnSeconds": 2, "leaseSeconds": 10}
        return {**super().settings(), **short, **self._limits}

    def machines(self, count: int, pool: str = "") -> list[str]:
        """Add machines with one GPU each."""
        prefix = f"{self.namespace}-{len(self._nodes)}"
        names = self.plane.add_nodes(count, ONE_GPU, prefix)
        self._nodes += names
        self.plane.kubectl("label", "node", *names, f"{POOL}={pool or self.namespace}")
        return names

    def clean(self) -> None:
        """Take the machines away, once nothing is on them: whatever is on one that is gone goes only after a minute."""
        where = ("--all", "-n", self.namespace)
        self.plane.kubectl(
            "delete", "pcmoe,jobs,replicasets", *where, "--cascade=foreground", "--timeout=50s"
        )
        self.vanish("pods", lambda: self.plane.pods(self.namespace))
        if self._nodes:
            self.plane.kubectl("delete", "node", *self._nodes, "--wait=false")

    def want(self, name: str, names: Sequence[str], pools: Mapping[str, str] | None = None) -> None:
        """Apply a consortium; `pools` by participant go over the namespace's own."""
        for participant in names:
            self.plane.apply(volume(self.namespace, name, participant))
        pool = dict.fromkeys(names, self.namespace) | dict(pools or {})
        local = [
            {
                "name": each,
                "gpus": 1,
                "volumes": VOLUMES,
                "template": {"nodeSelector": {POOL: pool[each]}},
            }
            for each in names
        ]
        made = manifest(names, {"metadata.name": name, "local": local, "agreement.training.rounds": 4})
        self.plane.apply(made, namespace=self.namespace)

    def holders(self, name: str) -> set[str]:
        """Participants of a consortium that have a machine now."""
        self.revive()
        found = set()
        for pod in self.plane.pods(self.namespace, f"pcmoe.dev/consortium={name}"):
            participant = pod["metadata"]["labels"].get("pcmoe.dev/participant")
            if participant and pod["spec"].get("nodeName"):
                found.add(participant)
        return found

    def eventually(
        self, name: str, what: str, true: Callable[[dict[str, Any]], bool], within: float = 30
    ) -> dict[str, Any]:
        """The status of a consortium, once it is as wanted."""

        def look() -> dict[str, Any] | None:
            self.revive()
            status = self.status(name)
            return status if true(status) else None

        try:
            return eventually(f"{name}: {what}", look, within=within, every=0.2)
        except WaitError as error:
            error.add_note(f"{json.dumps(self.status(name), indent=1)}\n{self.log.read_text()[-3000:]}")
            raise

    def remove(self, name: str) -> None:
        """Delete a consortium and wait until its pods are gone."""
        self.plane.kubectl("delete", "pcmoe", name, "-n", self.namespace, "--timeout=20s")

        def left() -> list[str]:
            pods = self.plane.pods(self.namespace, f"pcmoe.dev/consortium={name}")
            return [f"{pod['metadata']['name']} {pod['status'].get('phase')}" for pod in pods]

        self.vanish(f"pods of {name}", left)

    def vanish(self, what: str, left: Callable[[], Sequence[object]]) -> None:
        """Wait until nothing is left of something; what is, is told."""
        try:
            eventually(f"end of the {what}", lambda: not left(), within=60)
        except WaitError as error:
            error.add_note(f"{left()}\n{self.log.read_text()[-3000:]}")
            raise

    def age(self, name: str) -> tuple[str, str]:
        """When a consortium was made, and its uid."""
        metadata = self.plane.read("pcmoe", name, "-n", self.namespace)["metadata"]
        return metadata["creationTimestamp"], metadata["uid"]


def release(status: dict[str, Any]) -> tuple[str, int]:
    """Whether a consortium's pods may have machines, and its tries."""
    said = status.get("release", {})
    return said.get("state", ""), said.get("tries", 0)


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    """A condition, empty if there is none."""
    return next((each for each in status.get("conditions", []) if each["type"] == kind), {})


def row(status: dict[str, Any], name: str) -> dict[str, Any]:
    """A participant's entry."""
    return next((each for each in status.get("participants", []) if each["name"] == name), {})
