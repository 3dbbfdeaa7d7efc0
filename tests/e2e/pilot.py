"""The pilot sample, shortened: as a consortium on a real node, and as a run on one machine with the same secrets."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.e2e.machine import NAME as MACHINE

REPOSITORY = Path(__file__).parents[2]
SAMPLES = REPOSITORY / "manifests" / "samples"
PARTICIPANTS = ("abbey", "clinic", "lawfirm", "software")
CONSORTIUM = "pilot"
CLASS = "by-hand"
"""Nobody makes volumes of this class but the test."""
ROUNDS = 6
STEPS = 3
RUN_SECONDS = 900.0
TENSORS = "state.safetensors"


def manifest(namespace: str, rounds: int = ROUNDS, steps: int = STEPS) -> dict[str, Any]:
    """The pilot with volumes and a GPU each, fewer steps, and sums in a fixed order.

    There is no real GPU: a node that may take one or not takes the CPU. Four of them share this machine's cores, so
    each asks for a part of one.
    """
    made: dict[str, Any] = yaml.safe_load((SAMPLES / "pilot.yaml").read_text())
    made["metadata"]["namespace"] = namespace
    training = made["spec"]["agreement"]["training"]
    training |= {"rounds": rounds, "stepsPerRound": steps, "deterministic": True}
    for entry in made["spec"]["local"]:
        name = entry["name"]
        entry |= {
            "gpus": 1,
            "volumes": {
                "dataset": {"persistentVolumeClaim": {"claimName": f"{name}-records"}},
                "model": {"persistentVolumeClaim": {"claimName": f"{name}-model"}},
                "checkpoint": {"size": "1Gi", "storageClassName": CLASS},
            },
            "template": {"resources": {"requests": {"cpu": "250m", "memory": "1Gi"}}},
        }
    return made


def make_model(folder: Path) -> None:
    """Make the model that everybody starts from, as `make demo` does."""
    command = [sys.executable, "-m", "pcmoe_node.upcycle", str(SAMPLES / "base")]
    command += ["--experts", "16", "--top-k", "2", "--output", str(folder)]
    subprocess.run(command, check=True, timeout=RUN_SECONDS, stdout=subprocess.DEVNULL)


class Disks:
    """Folders of the machine as volumes of a namespace.

    Args:
        folder: Where they lie.
        model: The model that everybody starts from.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        self._folder, self.model = folder, model
        for name in PARTICIPANTS:
            shutil.copytree(SAMPLES / "volumes" / name / "dataset", folder / name / "dataset")
            (folder / name / "checkpoint").mkdir()
        for path in (folder, *folder.rglob("*"), model, *model.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)

    def dataset(self, participant: str) -> Path:
        """Where a participant's text lies."""
        return self._folder / participant / "dataset"

    def state(self, participant: str) -> Path:
        """What a participant's pod has as its checkpoint volume."""
        return self._folder / participant / "checkpoint"

    def objects(self, namespace: str) -> dict[str, Any]:
        """Volumes for all, and the claims that a person makes: those of text and model."""
        items: list[dict[str, Any]] = []
        for name in PARTICIPANTS:
            kinds = {
                f"{name}-records": self.dataset(name),
                f"{name}-model": self.model,
                f"{CONSORTIUM}.{name}": self.state(name),
            }
            for claim, path in kinds.items():
                items.append(_volume(namespace, claim, path))
                if path != self.state(name):
                    items.append(_claim(namespace, claim))
        return {"apiVersion": "v1", "kind": "List", "items": items}


def _volume(namespace: str, claim: str, path: Path) -> dict[str, Any]:
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [MACHINE]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{namespace}.{claim}"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": CLASS,
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": namespace, "name": claim},
            "local": {"path": str(path)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }


def _claim(namespace: str, name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": CLASS,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def run_here(made: Mapping[str, Any], disks: Disks, folder: Path) -> None:
    """The same manifest with `pcmoe run`, and with the secrets that the cluster's nodes drew for their order."""
    (folder / "secrets").mkdir(parents=True)
    path = folder / "manifest.yaml"
    path.write_text(json.dumps(made))
    command = [
        str(Path(sys.executable).with_name("pcmoe")),
        "run",
        str(path),
        "--output",
        str(folder / "run"),
    ]
    for name in PARTICIPANTS:
        secret = folder / "secrets" / name
        secret.write_text(json.loads((last(disks.state(name)) / "state.json").read_text())["secret"])
        given = {"dataset": disks.dataset(name), "model": disks.model, "order-secret": secret}
        command += [f"--volume={name}:{kind}={place}" for kind, place in given.items()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    assert done.returncode == 0, f"pcmoe run ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"


def assert_same(made: Mapping[str, Any], disks: Disks, folder: Path) -> list[float]:
    """Train once more with `pcmoe run` and compare losses and all that is stored, to the last bit.

    Returns:
        The last loss on held-out documents of each participant.
    """
    run_here(made, disks, folder)
    finals = []
    for name in PARTICIPANTS:
        here, there = folder / "run" / name, disks.state(name)
        expected = losses(here / "log")
        assert losses(there / "log") == expected, name
        finals.append(expected[-1][1][1])
        same = (last(there) / TENSORS).read_bytes() == (last(here) / TENSORS).read_bytes()
        assert same, f"{name}: what is stored after the last round differs"
    return finals


def last(state: Path) -> Path:
    """The last round that a participant stored."""
    return max(state.glob("**/round-*"))


def losses(log: Path) -> list[tuple[int, tuple[float, float]]]:
    """Round and losses of each round that a participant finished; the later one where a round was done again."""
    lines = (json.loads(line) for line in (log / "rounds.jsonl").read_text().splitlines())
    return sorted({line["round"]: (line["trainLoss"], line["heldOutLoss"]) for line in lines}.items())
