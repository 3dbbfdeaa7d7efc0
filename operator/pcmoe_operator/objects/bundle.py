"""All objects of one consortium but its Jobs, in the order in which they are applied."""

from collections.abc import Mapping

from pcmoe_operator.objects.configs import configmap
from pcmoe_operator.objects.coordinator import coordinator_replicaset
from pcmoe_operator.objects.inputs import FoundClaim, Inputs, Keys
from pcmoe_operator.objects.names import Object
from pcmoe_operator.objects.network import members_service, policies
from pcmoe_operator.objects.secrets import secrets
from pcmoe_operator.objects.volumes import checkpoint_claim


def bundle(
    inputs: Inputs, keys: Keys, claims: Mapping[str, FoundClaim] | None = None, coordinators: int = 1
) -> list[Object]:
    """Policies before anything can talk, then what pods mount, then the coordinator; nothing where nobody runs here.

    `cluster_faults` must be empty.
    `claims`: by participant, the checkpoint's claim as found in the cluster; `coordinators`: 1, or 0 to rest.
    """
    if not inputs.here:
        return []
    found = claims or {}
    told = configmap(inputs, keys)
    made = [*policies(inputs), members_service(inputs), *secrets(inputs, keys), told]
    for participant in inputs.here:
        claim = checkpoint_claim(inputs, participant, found.get(participant))
        made += [] if claim is None else [claim]
    if inputs.coordinates:
        made.append(coordinator_replicaset(inputs, told, coordinators))
    return made
