"""Secrets: a participant's CA, which only the operator reads, and the leaf that its pod mounts."""

import base64
from collections.abc import Iterator, Mapping

from pcmoe_operator.constants import COORDINATOR
from pcmoe_operator.objects.inputs import Inputs, Keys
from pcmoe_operator.objects.names import Object, Role, authority, certificate, head, labels
from pcmoe_operator.pki import KeyPair


def secrets(inputs: Inputs, keys: Keys) -> Iterator[Object]:
    """Every Secret of what runs here. Whoever can read the first kind can be that participant."""
    consortium = inputs.owner.name
    for name in inputs.here:
        own = keys.participants[name]
        yield _secret(
            inputs,
            authority(consortium, name),
            "Opaque",
            _files(own.authority, "ca"),
            labels(consortium, "node", name),
        )
        yield _leaf(inputs, name, "node", own.leaf)
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
