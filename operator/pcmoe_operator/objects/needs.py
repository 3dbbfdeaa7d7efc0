"""What a consortium lacks in a cluster that a run on one machine doesn't need."""

from collections.abc import Iterator

from pcmoe_operator.errors import Fault
from pcmoe_operator.objects.inputs import Inputs

VOLUMES = {
    "dataset": "a persistentVolumeClaim or an image with its records",
    "model": "a persistentVolumeClaim or an image with the model's checkpoint",
    "checkpoint": "a persistentVolumeClaim for its checkpoints, or the size of one",
}


def cluster_faults(inputs: Inputs) -> list[Fault]:
    """Every fault that keeps this consortium from running in a cluster; `bundle` and `jobs` want none."""
    return [*_volumes(inputs), *_peers(inputs)]


def _volumes(inputs: Inputs) -> Iterator[Fault]:
    consortium = inputs.consortium
    places = {entry.name: i for i, entry in enumerate(consortium.spec.local)}
    if not places:
        message = "is missing; a cluster needs the volumes of each participant that runs in it"
        yield Fault("spec.local", None, "cluster-volumes", message)
        return
    needed = [
        kind
        for kind in VOLUMES
        if kind != "model" or consortium.agreement.model.source.checkpoint is not None
    ]
    for name in inputs.here:
        for kind in needed:
            if getattr(consortium.local_entry(name).volumes, kind) is None:
                path = f"spec.local[{places[name]}].volumes.{kind}"
                message = f"is missing; a participant in a cluster needs {VOLUMES[kind]}"
                yield Fault(path, None, "cluster-volumes", message)


def _peers(inputs: Inputs) -> Iterator[Fault]:
    """Whoever runs elsewhere is known by the roster alone."""
    consortium = inputs.consortium
    for name in consortium.names:
        entry = consortium.roster_entry(name)
        if name in inputs.here:
            continue
        # Suspended, it is only made ready: partners exchange the CAs that are made then.
        if not consortium.spec.suspend and (entry is None or entry.ca_bundle is None):
            message = f"has no caBundle of {name}, which doesn't run here; its certificates can't be checked"
            yield Fault("spec.roster", name, "cluster-peers", message)
        if name == consortium.agreement.coordinator and (entry is None or entry.endpoint is None):
            message = f"has no endpoint of {name}, which runs the coordinator"
            yield Fault("spec.roster", name, "cluster-peers", message)
