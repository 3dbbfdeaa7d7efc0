"""What each process is told, as one ConfigMap each: a single one would pass 1 MiB with 64 participants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcmoe_node.config import CoordinatorConfig, NodeConfig
from pcmoe_operator.nodeconfig import NodePlaces, Places, coordinator_config, node_config
from pcmoe_operator.objects.inputs import Inputs, Keys
from pcmoe_operator.objects.names import Object, coordinator, head, labels, of_participant

NODE_FILE = "node.json"
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


def node_configuration(inputs: Inputs, keys: Keys, participant: str) -> NodeConfig:
    """What one node is told."""
    places = NodePlaces(
        **_shared(inputs, keys),
        dataset=DATASET,
        model=MODEL,
        checkpoint=STATE / "checkpoint",
        log=STATE / "log",
        termination_message=TERMINATION,
    )
    return node_config(inputs.consortium, inputs.plan, participant, places)


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
        "ca_bundles": {name: keys.participants[name].authority.certificate for name in inputs.here},
        "certificates": CERTIFICATES,
    }


def node_configmap(inputs: Inputs, keys: Keys, participant: str) -> Object:
    """A node's ConfigMap. A node reads it when it starts: what is agreed changes only while nothing runs."""
    owner = inputs.owner
    marked = labels(owner.name, "node", participant)
    text = node_configuration(inputs, keys, participant).model_dump_json()
    name = of_participant(owner.name, participant)
    return {**head("v1", "ConfigMap", name, owner, marked), "data": {NODE_FILE: text}}


def coordinator_configmap(inputs: Inputs, keys: Keys) -> Object:
    """The coordinator's ConfigMap."""
    owner = inputs.owner
    text = coordinator_configuration(inputs, keys).model_dump_json()
    made = head("v1", "ConfigMap", coordinator(owner.name), owner, labels(owner.name, "coordinator"))
    return {**made, "data": {COORDINATOR_FILE: text}}
