"""Keys of what runs in a cluster: found, drawn where there are none, and always fitting each other."""

import asyncio
from collections.abc import Mapping

from tests.unit.clustered import inputs

from pcmoe_operator.cluster import Cluster, ClusterError, Object, Requests
from pcmoe_operator.keys import KeyStore
from pcmoe_operator.objects.inputs import Inputs, Keys
from pcmoe_operator.objects.secrets import secrets
from pcmoe_operator.pki import identity_of, issued_by

GIVEN = inputs(2)


def requests(kept: dict[str, Object], asked: list[str]) -> Requests:
    """An API server that has these Secrets."""

    async def request(
        method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str
    ) -> Object:
        asked.append(path)
        name = path.rpartition("/")[2]
        if name not in kept:
            raise ClusterError(path, 404, "not found")
        return kept[name]

    return request


def found(kept: dict[str, Object], given: Inputs = GIVEN, asked: list[str] | None = None) -> Keys:
    """The keys that an operator finds or draws that was just started, with these Secrets in the cluster."""
    return asyncio.run(KeyStore(Cluster(requests(kept, [] if asked is None else asked))).of(given))


def name(member: str, agreement: str = GIVEN.consortium.agreement.id) -> str:
    """What a member's leaf is for."""
    return identity_of(member, agreement)


def kept(keys: Keys) -> dict[str, Object]:
    """Secrets with these keys, by name."""
    return {made["metadata"]["name"]: made for made in secrets(GIVEN, keys)}


def test_keys_that_are_there_stay() -> None:
    keys = found({})
    assert found(kept(keys)) == keys


def test_a_ca_that_was_lost_leaves_no_leaf_of_it_behind() -> None:
    before = found({})
    there = kept(before)
    for file in ("berlin.crt", "berlin.key"):
        del there["hospitals.ca"]["data"][file]
    now = found(there)
    assert (
        now.authorities["lyon"] == before.authorities["lyon"] and now.leaves["lyon"] == before.leaves["lyon"]
    )
    berlin = now.authorities["berlin"]
    assert berlin != before.authorities["berlin"]
    assert issued_by(now.leaves["berlin"], berlin, name("berlin"))
    assert now.coordinator is not None and issued_by(now.coordinator, berlin, name("coordinator"))


def test_without_any_ca_nothing_else_is_asked_for() -> None:
    asked: list[str] = []
    found({}, asked=asked)
    assert [path.rpartition("/")[2] for path in asked] == ["hospitals.ca"]


def test_a_leaf_that_was_lost_is_drawn_anew_from_the_same_ca() -> None:
    before = found({})
    there = kept(before)
    del there["hospitals.lyon.tls"]
    now = found(there)
    assert now.authorities == before.authorities
    assert now.leaves["lyon"] != before.leaves["lyon"]
    assert issued_by(now.leaves["lyon"], now.authorities["lyon"], name("lyon"))


def test_a_participant_that_comes_later_gets_keys_and_one_that_goes_leaves_its_ca() -> None:
    """What partners know of it must still be true when it comes back."""
    alone, both = (inputs(2, settings={"participants": names}) for names in (["berlin"], ["berlin", "lyon"]))
    there: dict[str, Object] = {}

    async def inside() -> list[Keys]:
        store = KeyStore(Cluster(requests(there, [])))
        return [await store.of(given) for given in (alone, both, alone, both)]

    first, second, third, fourth = asyncio.run(inside())
    assert set(first.leaves) == set(third.leaves) == {"berlin"}
    assert second.authorities == third.authorities == fourth.authorities
    assert issued_by(fourth.leaves["lyon"], second.authorities["lyon"], name("lyon"))
    after = found({made["metadata"]["name"]: made for made in secrets(alone, third)}, alone)
    assert after.authorities["lyon"] == second.authorities["lyon"], "another process finds it too"


def test_an_agreement_with_another_id_gets_leaves_with_its_names_from_the_same_cas() -> None:
    before = found({})
    now = found(kept(before), inputs(2, {"agreement.id": "another"}))
    assert now.authorities == before.authorities
    assert issued_by(now.leaves["lyon"], now.authorities["lyon"], name("lyon", "another"))
    assert now.coordinator is not None
    assert issued_by(now.coordinator, now.authorities["berlin"], name("coordinator", "another"))
