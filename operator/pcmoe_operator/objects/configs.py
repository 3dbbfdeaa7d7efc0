"""What each process is told: one ConfigMap for all. What all nodes are told alike is in it once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcmoe_node.config import CoordinatorConfig, NodeConfig
from pcmoe_operator.nodeconfig import NodePlaces, Places, coordinator_config, node_config, own_fields
from pcmoe_operator.objects.inputs import Inputs, Keys
from pcmoe_operator.objects.names import Object, configuration, head, labels

NODES_FILE = "nodes.json"
"""What all nodes are told alike. With 64 participants it is too much to be there for each of them."""
NODE_FILE = "node.json"
"""The rest, as a node's pod has it; in the ConfigMap it is below `node_key`."""
COORDINATOR_FILE = "coordinator.json"

CONFIG = Path("/etc/pcmoe/config")
CERTIFICATES = Path("/etc/pcmoe/certificates")
DATASET = Path("/volumes/dataset")
MODEL = Path("/volumes/model")
STATE = Path("/var/lib/pcmoe")
"""The checkpoint volume; checkpoints and log are folders of it."""
SCRATCH = Path("/tmp")
"""Gone with the pod: home, caches, and the coordinator's log."""
TERMINATION = Path("/dev/termination-log")


def node_places(inputs: Inputs, keys: Keys) -> NodePlaces:
    """Where things are in a node's pod, alike in all of them."""
    return NodePlaces(
        **_shared(inputs, keys),
        dataset=DATASET,
        model=MODEL,
        checkpoint=STATE / "checkpoint",
        log=STATE / "log",
        termination_message=TERMINATION,
    )


def node_configuration(inputs: Inputs, keys: Keys, participant: str) -> NodeConfig:
    """What one node is told."""
    return node_config(inputs.consortium, inputs.plan, participant, node_places(inputs, keys))


def coordinator_configuration(inputs: Inputs, keys: Keys) -> CoordinatorConfig:
    """What the coordinator is told."""
    places = Places(**_shared(inputs, keys), log=SCRATCH / "log")
    return coordinator_config(inputs.consortium, inputs.plan, places)


def _shared(inputs: Inputs, keys: Keys) -> Mapping[str, Any]:
    settings = inputs.settings
    return {
        "listen": f"0.0.0.0:{settings.node_port}",
        "status_listen": f"0.0.0.0:{settings.status_port}",
        "coordinator": inputs.coordinator_endpoint,
        "endpoints": {name: inputs.node_endpoint(name) for name in inputs.here},
        "ca_bundles": {name: keys.authorities[name].certificate for name in inputs.here},
        "certificates": CERTIFICATES,
    }


def node_key(participant: str) -> str:
    """The key of what one node alone is told. Names of participants have no dots."""
    return f"node.{participant}.json"


def configmap(inputs: Inputs, keys: Keys) -> Object:
    """The ConfigMap; somebody must run here. A node reads it when it starts: what is agreed changes only while nothing
    runs.
    """
    owner, places = inputs.owner, node_places(inputs, keys)
    first, *others = inputs.here
    config = node_config(inputs.consortium, inputs.plan, first, places)
    own = set(own_fields(inputs.consortium, inputs.plan, first, places))
    data = {
        NODES_FILE: config.model_dump_json(exclude=own),
        node_key(first): config.model_dump_json(include=own),
    }
    for other in others:
        told = config.model_copy(update=own_fields(inputs.consortium, inputs.plan, other, places))
        data[node_key(other)] = told.model_dump_json(include=own)
    if inputs.coordinates:
        data[COORDINATOR_FILE] = coordinator_configuration(inputs, keys).model_dump_json()
    made = head("v1", "ConfigMap", configuration(owner.name), owner, labels(owner.name))
    return {**made, "data": data}
