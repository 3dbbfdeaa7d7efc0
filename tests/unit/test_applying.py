"""What is applied, and when again."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from tests.unit.clustered import inputs

from pcmoe_operator.applying import AGAIN_SECONDS, NOT_YET, Applier
from pcmoe_operator.cluster import Cluster, ClusterError, Object
from pcmoe_operator.constants import COORDINATOR, KIND
from pcmoe_operator.objects.inputs import Inputs, Keys
from pcmoe_operator.pki import KeyPair, identity_of, issue_authority, issue_leaf
from pcmoe_operator.world import World

GIVEN = inputs(2)
UID = GIVEN.owner.uid


@cache
def authority_and_leaf(member: str, agreement: str) -> tuple[KeyPair, KeyPair]:
    """Real ones, drawn once."""
    authority = issue_authority(member, agreement)
    return authority, issue_leaf(authority, identity_of(member, agreement))


def keys(given: Inputs) -> Keys:
    """Keys of all that runs here."""
    pairs = {name: authority_and_leaf(name, given.consortium.agreement.id) for name in given.here}
    return Keys(
        authorities={name: authority for name, (authority, _) in pairs.items()},
        leaves={name: leaf for name, (_, leaf) in pairs.items()},
        coordinator=authority_and_leaf(COORDINATOR, given.consortium.agreement.id)[1],
    )


class Api:
    """Counts what is applied; refuses what it is told to."""

    def __init__(self) -> None:
        self.applied: list[Object] = []
        self.refuses: dict[str, str] = {}
        self.conflicts: list[str] = []
        """What is said to the next that are made."""
        self.meanwhile: Callable[[], None] | None = None
        """What happens while something is applied."""
        self.there: dict[str, Object] = {}
        self.seconds = 0.0
        self.now = datetime.now(UTC)
        self.world = World(lambda _key: None)
        self.applier = self.started()

    def started(self) -> Applier:
        """Another process of the operator."""
        return Applier(Cluster(self), self.world, clock=lambda: self.seconds, now=lambda: self.now)

    async def __call__(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str
    ) -> Object:
        if body is None:
            if path in self.there:
                return self.there[path]
            raise ClusterError(path, 404, "not found")
        name, words = body["metadata"]["name"], self.refuses.get(body["metadata"]["name"])
        if method == "POST" and self.conflicts:
            raise ClusterError(path, 409, self.conflicts.pop(0))
        if words and ("ownerRef" not in words or "ownerReferences" in body["metadata"]):
            raise ClusterError(path, 403, words)
        self.applied.append(body)
        if self.meanwhile is not None:
            self.meanwhile()
        assert name
        return body

    def pod(self, name: str, labels: Mapping[str, str], *, gone: bool = False) -> None:
        """A pod as a watch tells of it."""
        metadata = {"name": name, "namespace": GIVEN.owner.namespace, "labels": labels}
        seen = {"kind": "Pod", "metadata": metadata, "status": {"phase": "Running"}}
        self.world.saw("DELETED" if gone else "ADDED", seen)

    def coordinators(self) -> list[int]:
        """How many pods of it there should be, as often as it was applied."""
        return [made["spec"]["replicas"] for made in self.applied if made["kind"] == "ReplicaSet"]

    def apply(self) -> int:
        """Apply everything; how many objects were."""
        before = len(self.applied)
        asyncio.run(self.applier.objects(GIVEN, keys(GIVEN)))
        return len(self.applied) - before


def test_what_was_applied_is_not_applied_again_before_somebody_doubts_it() -> None:
    api = Api()
    everything = api.apply()
    assert everything > 10 and api.apply() == 0
    api.applier.forget(UID)
    assert api.apply() == everything


def test_a_pod_that_goes_while_objects_are_applied_is_for_the_next_look() -> None:
    api, suspended = Api(), inputs(2, {"suspend": True})
    node = ("a-node", {"pcmoe.dev/consortium": "hospitals", "pcmoe.dev/role": "node"})
    api.pod(*node)
    api.meanwhile = lambda: api.pod(*node, gone=True)
    asyncio.run(api.applier.objects(suspended, keys(suspended)))
    assert api.coordinators() == [1] and not api.applier.settled(suspended, NOT_YET).digest
    asyncio.run(api.applier.objects(suspended, keys(suspended)))
    assert api.coordinators() == [1, 0] and api.applier.settled(suspended, NOT_YET).digest


def test_the_next_process_believes_the_status() -> None:
    api = Api()
    api.apply()
    written = api.applier.settled(GIVEN, NOT_YET)
    api.applier = api.started()
    assert written.digest and api.applier.settled(GIVEN, written) == written
    assert api.applier.settled(replace(inputs(2, {"attempt": 2}), generation=2), written) == NOT_YET
    api.applier.forget(UID)
    assert api.applier.settled(GIVEN, written) == NOT_YET


@pytest.mark.parametrize("restarted", [False, True])
def test_keys_are_looked_at_when_the_first_certificate_is_due_and_not_before(restarted: bool) -> None:
    api = Api()
    everything, began = api.apply(), api.now
    written = api.applier.settled(GIVEN, NOT_YET)
    if restarted:
        api.applier = api.started()
    api.now = began + timedelta(days=4.6)
    assert api.applier.settled(GIVEN, written) == written
    api.now = began + timedelta(days=4.7)
    assert api.applier.settled(GIVEN, written) == NOT_YET
    assert api.apply() == (everything if restarted else 0), "these keys are as they were"


@pytest.mark.parametrize("renewal", ["", "yesterday", "2026-11-24T12:00:00"])
def test_a_status_that_does_not_say_when_certificates_are_due_is_not_believed(renewal: str) -> None:
    api = Api()
    api.apply()
    written = replace(api.applier.settled(GIVEN, NOT_YET), renewal=renewal)
    assert api.started().settled(GIVEN, written) == NOT_YET


def test_where_nobody_runs_no_certificate_is_ever_due() -> None:
    api, nobody = Api(), inputs(2, settings={"participants": ["elsewhere"]})
    asyncio.run(api.applier.objects(nobody, Keys(authorities={}, leaves={})))
    settled = api.applier.settled(nobody, NOT_YET)
    api.now += timedelta(days=365)
    assert settled.digest and not settled.renewal and api.applier.settled(nobody, NOT_YET) == settled


def test_a_refused_object_stops_no_other_and_is_tried_again_after_a_while() -> None:
    api = Api()
    everything = Api().apply()
    api.refuses["hospitals.lyon"] = "no room"
    made = api.apply()
    assert made < everything and api.apply() == 0
    assert all("no room" in words for words in api.applier.refusals(UID))
    assert not api.applier.settled(GIVEN, NOT_YET).digest
    api.refuses.clear()
    assert api.apply() == 0
    api.seconds += AGAIN_SECONDS
    assert api.apply() == everything - made
    assert api.applier.refusals(UID) == () and api.applier.settled(GIVEN, NOT_YET).digest


def test_what_may_have_no_owner_is_applied_without_one() -> None:
    api = Api()
    api.refuses["hospitals.ca"] = "cannot set an ownerRef on a resource you can't delete"
    assert api.apply() == Api().apply()
    [secret] = [made for made in api.applied if made["metadata"]["name"] == "hospitals.ca"]
    assert "ownerReferences" not in secret["metadata"]


def test_an_object_that_a_pod_misses_is_applied_again_but_not_at_every_look() -> None:
    api = Api()
    everything = api.apply()
    api.applier.missed(UID)
    assert api.apply() == everything
    api.applier.missed(UID)
    assert api.apply() == 0
    api.seconds += 2 * AGAIN_SECONDS
    api.applier.missed(UID)
    assert api.apply() == everything


def test_a_claim_that_was_kept_keeps_its_size_also_where_jobs_are_looked_at_first() -> None:
    volumes = {
        **inputs(2).consortium.local_entry("lyon").volumes.model_dump(by_alias=True, exclude_none=True)
    }
    given = inputs(2, lyon={"volumes": {**volumes, "checkpoint": {"size": "1Gi"}}})
    api = Api()
    kept = {"spec": {"resources": {"requests": {"storage": "9Gi"}}, "storageClassName": "slow"}}
    api.there[f"/api/v1/namespaces/{given.owner.namespace}/persistentvolumeclaims/hospitals.lyon"] = kept
    asyncio.run(api.applier.jobs(given, frozenset(), make=False))
    asyncio.run(api.applier.objects(given, keys(given)))
    [claim] = [
        each
        for each in api.applied
        if each["metadata"]["name"] == "hospitals.lyon" and "resources" in each.get("spec", {})
    ]
    assert claim["spec"]["resources"]["requests"]["storage"] == "9Gi"
    assert claim["spec"]["storageClassName"] == "slow"


def test_a_coordinator_of_another_configuration_goes_before_there_is_the_next() -> None:
    api = Api()
    api.apply()

    def replicas() -> list[int]:
        return [made["spec"]["replicas"] for made in api.applied if made["kind"] == "ReplicaSet"]

    template = api.applied[-1]["spec"]["template"]["metadata"]["labels"]
    api.pod("old", {**template, "pcmoe.dev/template": "another"})
    api.applier.forget(UID)
    api.apply()
    assert replicas() == [1, 0]
    assert not api.applier.settled(GIVEN, NOT_YET).digest, "whoever comes after this process goes on"
    assert api.apply() == 0, "and it waits"
    api.pod("old", template, gone=True)
    assert api.apply() == 1 and replicas() == [1, 0, 1]
    assert api.applier.settled(GIVEN, NOT_YET).digest
    api.pod("new", template)
    api.applier.forget(UID)
    api.apply()
    assert replicas() == [1, 0, 1, 1]


def test_a_job_that_came_and_went_between_two_looks_is_made_again() -> None:
    api = Api()
    owner = GIVEN.owner
    api.world.saw("ADDED", {"kind": KIND, "metadata": {"name": owner.name, "namespace": owner.namespace}})
    asyncio.run(api.applier.jobs(GIVEN, frozenset(), make=True))
    asyncio.run(api.applier.jobs(GIVEN, frozenset(), make=True))
    assert len(api.applied) == 2, "the watch has not told of them yet"
    for event in ("ADDED", "DELETED"):
        api.world.saw(event, {**api.applied[0], "status": {}})
    asyncio.run(api.applier.jobs(GIVEN, frozenset(), make=True))
    assert [made["metadata"]["name"] for made in api.applied[2:]] == [api.applied[0]["metadata"]["name"]]


def test_a_job_that_is_there_already_is_made_but_not_one_that_meets_another_conflict() -> None:
    api = Api()
    api.conflicts = ['jobs.batch "hospitals.berlin.1" already exists', "the quota has been changed"]
    with pytest.raises(ClusterError):
        asyncio.run(api.applier.jobs(GIVEN, frozenset(), make=True))
    asyncio.run(api.applier.jobs(GIVEN, frozenset(), make=True))
    assert [made["metadata"]["name"] for made in api.applied] == ["hospitals.lyon.1"]


def test_a_refused_job_of_an_attempt_before_is_forgotten() -> None:
    api = Api()
    api.refuses["hospitals.lyon.1"] = "no room"
    asyncio.run(api.applier.jobs(GIVEN, frozenset(), make=True))
    assert api.applier.refusals(UID)
    given = replace(inputs(2, {"attempt": 2}), generation=2)
    asyncio.run(api.applier.objects(given, keys(given)))
    assert api.applier.refusals(UID) == ()
