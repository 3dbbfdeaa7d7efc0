"""Keys and certificates of what runs in this cluster: found in Secrets, drawn where there are none, renewed in time."""

import base64
import binascii

from pcmoe_operator.cluster import Cluster, Object
from pcmoe_operator.constants import COORDINATOR
from pcmoe_operator.objects.inputs import Inputs, Keys, ParticipantKeys
from pcmoe_operator.objects.names import authority, certificate
from pcmoe_operator.pki import KeyPair, identity_of, issue_authority, issue_leaf, issued_by, leaf_due


class KeyStore:
    """Keys by consortium, in memory once read. A CA is never replaced: partners have its certificate."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._known: dict[str, Keys] = {}

    async def of(self, inputs: Inputs) -> Keys:
        """The keys of a consortium, its leaves with at least a third of their life left."""
        uid = inputs.owner.uid
        known = self._known.get(uid) or await self._found(inputs)
        self._known[uid] = keys = self._fresh(inputs, known)
        return keys

    def forget(self, uid: str) -> None:
        """The consortium is gone."""
        self._known.pop(uid, None)

    async def _found(self, inputs: Inputs) -> Keys:
        """What the cluster has; drawn anew what it hasn't."""
        agreement = inputs.consortium.agreement
        participants, coordinator = {}, None
        for name in inputs.here:
            found = await self._pair(inputs, authority(inputs.owner.name, name), "ca")
            ca = found or issue_authority(name, agreement.id)
            # A leaf that a lost CA has issued is of no use: where there is no CA none need be asked for.
            leaf = found and await self._pair(inputs, certificate(inputs.owner.name, name), "tls")
            participants[name] = ParticipantKeys(
                authority=ca, leaf=leaf or issue_leaf(ca, identity_of(name, agreement.id))
            )
            if name == agreement.coordinator and found:
                coordinator = await self._pair(inputs, certificate(inputs.owner.name, COORDINATOR), "tls")
        return Keys(participants=participants, coordinator=coordinator)

    def _fresh(self, inputs: Inputs, keys: Keys) -> Keys:
        agreement = inputs.consortium.agreement
        participants = {
            name: ParticipantKeys(
                authority=own.authority, leaf=_leaf(own.leaf, own.authority, identity_of(name, agreement.id))
            )
            for name, own in keys.participants.items()
        }
        coordinator = None
        if inputs.coordinates:
            host = participants[agreement.coordinator].authority
            coordinator = _leaf(keys.coordinator, host, identity_of(COORDINATOR, agreement.id))
        return Keys(participants=participants, coordinator=coordinator)

    async def _pair(self, inputs: Inputs, name: str, stem: str) -> KeyPair | None:
        secret = await self._cluster.read("v1", "Secret", inputs.owner.namespace, name)
        return None if secret is None else _pair_of(secret, stem)


def _leaf(found: KeyPair | None, authority: KeyPair, identity: str) -> KeyPair:
    """The leaf that was found, or its successor."""
    if found is None or leaf_due(found) or not issued_by(found, authority):
        return issue_leaf(authority, identity)
    return found


def _pair_of(secret: Object, stem: str) -> KeyPair | None:
    """Certificate and key in a Secret; None where they are not whole."""
    data = secret.get("data") or {}
    try:
        certificate_text = base64.b64decode(data[f"{stem}.crt"], validate=True).decode()
        key_text = base64.b64decode(data[f"{stem}.key"], validate=True).decode()
    except (KeyError, binascii.Error, UnicodeDecodeError):
        return None
    return KeyPair(certificate=certificate_text, key=key_text)
