"""Keys of what runs in a cluster: found, drawn where there are none, and always fitting each other."""

import asyncio
from collections.abc import Mapping

from tests.unit.clustered import inputs

from pcmoe_operator.cluster import Cluster, ClusterError, Object
from pcmoe_operator.keys import KeyStore
from pcmoe_operator.objects.inputs import Inputs, Keys
from pcmoe_operator.objects.secrets import secrets
from pcmoe_operator.pki import issued_by

GIVEN = inputs(2)


def found(kept: dict[str, Object], given: Inputs = GIVEN) -> Keys:
    """The keys that an operator finds or draws that was just started, with these Secrets in the cluster."""

    async def request(
        method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str
    ) -> Object:
        name = path.rpartition("/")[2]
        if name not in kept:
            raise ClusterError(path, 404, "not found")
        return kept[name]

    return asyncio.run(KeyStore(Cluster(request)).of(given))


def kept(keys: Keys) -> dict[str, Object]:
    """Secrets with these keys, by name."""
    return {made["metadata"]["name"]: made for made in secrets(GIVEN, keys)}


def test_keys_that_are_there_stay() -> None:
    keys = found({})
    assert found(kept(keys)) == keys


def test_a_ca_that_was_lost_leaves_no_leaf_of_it_behind() -> None:
    before = found({})
    there = kept(before)
    del there["hospitals.berlin.ca"]
    now = found(there)
    assert now.participants["lyon"] == before.participants["lyon"]
    berlin = now.participants["berlin"]
    assert issued_by(berlin.leaf, berlin.authority)
    assert now.coordinator is not None and issued_by(now.coordinator, berlin.authority)


def test_a_leaf_that_was_lost_is_drawn_anew_from_the_same_ca() -> None:
    before = found({})
    there = kept(before)
    del there["hospitals.lyon.tls"]
    now = found(there).participants["lyon"]
    assert now.authority == before.participants["lyon"].authority
    assert now.leaf != before.participants["lyon"].leaf and issued_by(now.leaf, now.authority)
