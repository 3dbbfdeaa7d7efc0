"""Keys and certificates of what runs in this cluster: found in Secrets, drawn where there are none, renewed in time."""

import base64
import binascii
from collections.abc import Mapping

from pcmoe_operator.cluster import Cluster, Object
from pcmoe_operator.constants import COORDINATOR
from pcmoe_operator.objects.inputs import Inputs, Keys
from pcmoe_operator.objects.names import authorities, certificate
from pcmoe_operator.pki import KeyPair, identity_of, issue_authority, issue_leaf, issued_by, leaf_due

NO_KEYS = Keys(authorities={}, leaves={})


class KeyStore:
    """Keys by consortium, in memory once read. A CA is never replaced: partners have its certificate."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._known: dict[str, Keys] = {}

    async def of(self, inputs: Inputs) -> Keys:
        """The keys of a consortium, its leaves with at least a third of their life left."""
        uid = inputs.owner.uid
        known = self._known.get(uid, NO_KEYS)
        if not set(inputs.here) <= known.leaves.keys():
            known = await self._found(inputs, known)
        self._known[uid] = keys = _fresh(inputs, known)
        return keys

    def forget(self, uid: str) -> None:
        """The consortium is gone."""
        self._known.pop(uid, None)

    async def _found(self, inputs: Inputs, known: Keys) -> Keys:
        """What is known and what the cluster has: for a new consortium that is one look for its CAs."""
        consortium, agreement = inputs.owner.name, inputs.consortium.agreement
        found = {**_pairs(await self._read(inputs, authorities(consortium))), **known.authorities}
        leaves, coordinator = dict(known.leaves), known.coordinator
        # A leaf that a lost CA has issued is of no use: where there is no CA none need be asked for.
        for name in found.keys() & set(inputs.here) - leaves.keys():
            leaf = _pairs(await self._read(inputs, certificate(consortium, name))).get("tls")
            leaves |= {} if leaf is None else {name: leaf}
        if coordinator is None and inputs.coordinates and agreement.coordinator in found:
            coordinator = _pairs(await self._read(inputs, certificate(consortium, COORDINATOR))).get("tls")
        return Keys(authorities=found, leaves=leaves, coordinator=coordinator)

    async def _read(self, inputs: Inputs, name: str) -> Object | None:
        return await self._cluster.read("v1", "Secret", inputs.owner.namespace, name)


def _fresh(inputs: Inputs, keys: Keys) -> Keys:
    """The same with what is missing drawn, and leaves that are due renewed."""
    agreement = inputs.consortium.agreement
    drawn = {
        name: issue_authority(name, agreement.id) for name in inputs.here if name not in keys.authorities
    }
    found = {**keys.authorities, **drawn}
    leaves = {
        name: _leaf(keys.leaves.get(name), found[name], identity_of(name, agreement.id))
        for name in inputs.here
    }
    coordinator = None
    if inputs.coordinates:
        host = found[agreement.coordinator]
        coordinator = _leaf(keys.coordinator, host, identity_of(COORDINATOR, agreement.id))
    return Keys(authorities=found, leaves=leaves, coordinator=coordinator)


def _leaf(found: KeyPair | None, authority: KeyPair, identity: str) -> KeyPair:
    """The leaf that was found, or its successor."""
    if found is None or leaf_due(found) or not issued_by(found, authority, identity):
        return issue_leaf(authority, identity)
    return found


def _pairs(secret: Object | None) -> Mapping[str, KeyPair]:
    """Certificates and keys in a Secret by the stems of their files; without those that are not whole."""
    data = (secret or {}).get("data") or {}
    found = {}
    for file in data:
        stem = file.removesuffix(".crt")
        try:
            texts = [
                base64.b64decode(data[f"{stem}.{end}"], validate=True).decode() for end in ("crt", "key")
            ]
        except (KeyError, binascii.Error, UnicodeDecodeError):
            continue
        found[stem] = KeyPair(certificate=texts[0], key=texts[1])
    return found
