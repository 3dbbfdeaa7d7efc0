"""Secrets: the participants' CAs, which only the operator reads, and the leaf that each pod mounts."""

import base64
from collections.abc import Iterator, Mapping

from pcmoe_operator.constants import COORDINATOR
from pcmoe_operator.objects.inputs import Inputs, Keys
from pcmoe_operator.objects.names import Object, Role, authorities, certificate, head, labels
from pcmoe_operator.pki import KeyPair


def secrets(inputs: Inputs, keys: Keys) -> Iterator[Object]:
    """Every Secret of what runs here. Whoever can read the first can be each of these participants.

    A leaf has a Secret of its own: a machine may read those that its pods mount, and shall have no other's key.
    """
    consortium = inputs.owner.name
    files = [_files(pair, name) for name, pair in sorted(keys.authorities.items())]
    all_files = {file: text for each in files for file, text in each.items()}
    yield _secret(inputs, authorities(consortium), "Opaque", all_files, labels(consortium))
    for name in inputs.here:
        yield _leaf(inputs, name, "node", keys.leaves[name])
    if inputs.coordinates:
        assert keys.coordinator is not None
        yield _leaf(inputs, COORDINATOR, "coordinator", keys.coordinator)


def _leaf(inputs: Inputs, member: str, role: Role, leaf: KeyPair) -> Object:
    consortium = inputs.owner.name
    marked = labels(consortium, role, member if role == "node" else None)
    return _secret(inputs, certificate(consortium, member), "kubernetes.io/tls", _files(leaf, "tls"), marked)


def _files(pair: KeyPair, stem: str) -> Mapping[str, str]:
    return {f"{stem}.crt": pair.certificate, f"{stem}.key": pair.key}


def _secret(
    inputs: Inputs, name: str, kind: str, files: Mapping[str, str], marked: Mapping[str, str]
) -> Object:
    # `data`, not `stringData`: the server stores only the former, and apply would see a difference every time.
    data = {key: base64.b64encode(text.encode()).decode() for key, text in files.items()}
    return {**head("v1", "Secret", name, inputs.owner, marked), "type": kind, "data": data}
