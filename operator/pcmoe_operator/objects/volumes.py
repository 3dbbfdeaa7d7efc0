"""The claim of a participant's checkpoints, and the volumes that its pod mounts."""

from collections.abc import Mapping
from dataclasses import dataclass

from pcmoe_operator.objects.configs import (
    CERTIFICATES,
    CONFIG,
    COORDINATOR_FILE,
    DATASET,
    MODEL,
    NODE_FILE,
    NODES_FILE,
    SCRATCH,
    STATE,
    node_key,
)
from pcmoe_operator.objects.inputs import FoundClaim, Inputs
from pcmoe_operator.objects.names import Object, certificate, configuration, head, labels, of_participant
from pcmoe_operator.pod import CheckpointVolume, ReadVolume
from pcmoe_operator.scalars import quantity

SCRATCH_SIZE = "2Gi"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mounts:
    """Volumes of a pod, and where its container has them."""

    volumes: tuple[Object, ...]
    mounts: tuple[Object, ...]


def checkpoint_claim(inputs: Inputs, participant: str, found: FoundClaim | None) -> Object | None:
    """The claim to be made for a participant, or None if its manifest names one that is there.

    It holds days of work, so by default it has no owner and outlives its consortium. A claim can't shrink or change
    its class: what was found stays as it is unless more is asked for.
    """
    volume = inputs.consortium.local_entry(participant).volumes.checkpoint
    assert volume is not None
    if volume.size is None:
        return None
    owner = inputs.owner
    marked = labels(owner.name, "node", participant)
    # Tools that prune by this label leave alone what has an owner; a claim without one they would delete.
    del marked["app.kubernetes.io/instance"]
    name = of_participant(owner.name, participant)
    claim = head("v1", "PersistentVolumeClaim", name, owner, marked)
    if volume.on_delete == "Retain":
        del claim["metadata"]["ownerReferences"]
    return {**claim, "spec": _claim_spec(volume, found)}


def _claim_spec(volume: CheckpointVolume, found: FoundClaim | None) -> Object:
    size, storage_class = volume.size, volume.storage_class_name
    assert size is not None
    if found is not None:
        size = found.size if quantity(found.size) >= quantity(size) else size
        storage_class = found.storage_class
    made: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    return made if storage_class is None else {**made, "storageClassName": storage_class}


def node_mounts(inputs: Inputs, participant: str) -> Mounts:
    """All that a node's pod mounts. No CA's key is among it, nor anybody else's leaf or own configuration."""
    consortium, entry = inputs.owner.name, inputs.consortium.local_entry(participant)
    files = {NODES_FILE: NODES_FILE, node_key(participant): NODE_FILE}
    sources = {
        **_own_files(configuration(consortium), files, certificate(consortium, participant)),
        "dataset": _read(entry.volumes.dataset),
        "model": _read(entry.volumes.model),
        "state": _written(entry.volumes.checkpoint, of_participant(consortium, participant)),
        "scratch": {"emptyDir": {"sizeLimit": SCRATCH_SIZE}},
    }
    return _mounts(sources)


def coordinator_mounts(configmap: str, secret: str) -> Mounts:
    """All that the coordinator's pod mounts: it keeps nothing."""
    files = _own_files(configmap, {COORDINATOR_FILE: COORDINATOR_FILE}, secret)
    return _mounts({**files, "scratch": {"emptyDir": {"sizeLimit": "64Mi"}}})


_PLACES = {
    "config": (CONFIG, True),
    "certificates": (CERTIFICATES, True),
    "dataset": (DATASET, True),
    "model": (MODEL, True),
    "state": (STATE, False),
    "scratch": (SCRATCH, False),
}
"""Where each volume is mounted, and whether it is only read."""


def _mounts(sources: Mapping[str, Object | None]) -> Mounts:
    # Never by subPath: such a mount doesn't see the Secret's next certificate.
    there = {name: source for name, source in sources.items() if source is not None}
    return Mounts(
        volumes=tuple({"name": name, **source} for name, source in there.items()),
        mounts=tuple(
            {"name": name, "mountPath": str(_PLACES[name][0]), "readOnly": _PLACES[name][1]} for name in there
        ),
    )


def _own_files(configmap: str, files: Mapping[str, str], secret: str) -> Mapping[str, Object]:
    items = [{"key": key, "path": path} for key, path in files.items()]
    return {
        "config": {"configMap": {"name": configmap, "items": items}},
        "certificates": {"secret": {"secretName": secret, "defaultMode": 0o440}},
    }


def _read(volume: ReadVolume | None) -> Object | None:
    if volume is None:
        return None
    if volume.image is not None:
        return {"image": {"reference": volume.image.reference, "pullPolicy": volume.image.pull_policy}}
    assert volume.persistent_volume_claim is not None
    claim = volume.persistent_volume_claim.claim_name
    return {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}


def _written(volume: CheckpointVolume | None, made: str) -> Object:
    assert volume is not None
    given = volume.persistent_volume_claim
    return {"persistentVolumeClaim": {"claimName": given.claim_name if given else made}}
