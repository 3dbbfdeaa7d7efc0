"""What is applied to the cluster for a consortium: only what differs from what was applied last, and never two attempts
at once on one checkpoint.

A refused object stops nothing else: it is told, and tried again after a while.
"""

import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

from pcmoe_operator.cluster import Cluster, ClusterError
from pcmoe_operator.objects.bundle import bundle
from pcmoe_operator.objects.inputs import FoundClaim, Inputs, Keys
from pcmoe_operator.objects.jobs import job
from pcmoe_operator.objects.names import (
    ATTEMPT,
    PARTICIPANT,
    ROLE,
    TEMPLATE,
    coordinator,
    of_attempt,
    of_participant,
)
from pcmoe_operator.pki import renewal_time
from pcmoe_operator.standing import Settled
from pcmoe_operator.times import moment, time_of
from pcmoe_operator.world import Key, Object, World

CLAIM = "PersistentVolumeClaim"
REPLICAS = "ReplicaSet"
REFUSED = (403, 422)
"""The API server will say the same again until somebody changes something."""
AGAIN_SECONDS = 60.0
"""After so long a refused object is tried again."""
VERSION = version("pcmoe")
NOT_YET = Settled()
log = logging.getLogger(__name__)

Write = Callable[[Object], Awaitable[object]]
Name = tuple[str, str]
"""(kind, name) of an object."""


class Applied:
    """What was applied to one consortium, by this process."""

    def __init__(self) -> None:
        self.digests: dict[Name, str] = {}
        self.refused: dict[Name, tuple[str, str, float]] = {}
        """Digest, the server's words, and when to try again."""
        self.generation = 0
        """Of the manifest that was applied last."""

    def due(self, name: Name, digest: str, now: float) -> bool:
        """Whether to apply an object of this digest now."""
        refused = self.refused.get(name)
        if refused is not None and refused[0] == digest:
            return now >= refused[2]
        # A claim is made once: it is its owner's to change.
        return self.digests.get(name) != digest and not (name[0] == CLAIM and name in self.digests)

    def keep(self, wanted: set[Name], inputs: Inputs) -> None:
        """Refusals of what nobody wants any more, such as the Jobs of an attempt before, are forgotten."""
        jobs = {("Job", of_attempt(inputs.owner.name, each, inputs.attempt)) for each in inputs.here}
        self.refused = {name: why for name, why in self.refused.items() if name in wanted | jobs}


class Applier:
    """Makes objects and changes them."""

    def __init__(
        self,
        cluster: Cluster,
        world: World,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster = cluster
        self._world = world
        self._clock = clock
        self._now = now
        self._applied: dict[str, Applied] = {}
        """By the consortium's uid."""
        self._done: dict[str, Settled] = {}
        """By uid, those whose objects are all there. Known anew from the status after a restart."""
        self._doubted: set[str] = set()
        """Uids of those of which the status isn't believed."""
        self._digests: dict[str, tuple[tuple[int, int], str]] = {}
        """By uid: digest of the inputs of a generation of the manifest."""
        self._missed: dict[str, float] = {}
        """By uid: when a pod last missed something."""

    def settled(self, inputs: Inputs, written: Settled) -> Settled:
        """Whether all that follows from the inputs was applied, by this process or, as the status has `written`, by
        one before it. It isn't once a certificate is due.
        """
        uid = inputs.owner.uid
        known = self._done.get(uid, NOT_YET if uid in self._doubted else written)
        agreed = known.digest == self._digest_of(inputs)
        return known if agreed and not self._due(inputs, known.renewal) else NOT_YET

    def _due(self, inputs: Inputs, renewal: str) -> bool:
        """Whether certificates are to be looked at; also where the status doesn't tell when, or nonsense."""
        at = time_of(renewal)
        return bool(inputs.here) if at is None else self._now() >= at

    def forget(self, uid: str) -> None:
        """Apply everything again at the next look: others may have changed or deleted something."""
        self._applied.pop(uid, None)
        self._done.pop(uid, None)
        self._doubted.add(uid)

    def missed(self, uid: str) -> None:
        """A pod misses something that was applied: somebody has deleted it."""
        last = self._missed.get(uid)
        # Not at every look: a kubelet takes its time to see what is new.
        if last is None or self._clock() - last > AGAIN_SECONDS:
            self._missed[uid] = self._clock()
            self.forget(uid)

    def gone(self, uid: str) -> None:
        """The consortium is."""
        self.forget(uid)
        self._doubted.discard(uid)
        self._missed.pop(uid, None)
        self._digests.pop(uid, None)

    def refusals(self, uid: str) -> tuple[str, ...]:
        """What the API server refuses, in its words."""
        applied = self._applied.get(uid)
        if applied is None:
            return ()
        return tuple(f"{kind} {name}: {words}" for (kind, name), (_, words, _) in applied.refused.items())

    # Objects

    async def objects(self, inputs: Inputs, keys: Keys) -> None:
        """Everything but Jobs."""
        uid = inputs.owner.uid
        applied = self._applied.setdefault(uid, Applied())
        # As of now, whatever is heard of pods meanwhile: what follows from that is for the next look.
        coordinators, digest_now = self._coordinators(inputs), self._digest_of(inputs)
        if applied.generation != inputs.generation:  # what becomes of a claim may have been changed
            applied.digests = {name: mark for name, mark in applied.digests.items() if name[0] != CLAIM}
            applied.generation = inputs.generation
        claims = await self._claims(inputs, applied)
        everything = bundle(inputs, keys, claims, coordinators=coordinators)
        applied.keep({(made["kind"], made["metadata"]["name"]) for made in everything}, inputs)
        replaced = [made for made in everything if made["kind"] == REPLICAS and self._outdated(inputs, made)]
        for made in replaced:
            made["spec"]["replicas"] = 0
        for made in everything:
            name, digest = (made["kind"], made["metadata"]["name"]), digest_of(made)
            if applied.due(name, digest, self._clock()):
                await self._apply(applied, name, digest, made)
        if not applied.refused and not replaced:
            self._done[uid] = Settled(digest=digest_now, renewal=_first_renewal(keys))
            self._doubted.discard(uid)

    async def _apply(
        self, applied: Applied, name: Name, digest: str, made: Object, write: Write | None = None
    ) -> None:
        applied.refused.pop(name, None)
        try:
            await (write or self._cluster.apply)(made)
        except ClusterError as error:
            if error.status not in REFUSED:
                raise
            if "ownerRef" in error.reason and "ownerReferences" in made.get("metadata", ()):
                # Found without an owner, as a restored Secret or a kept claim is: it stays so.
                metadata = {k: value for k, value in made["metadata"].items() if k != "ownerReferences"}
                await self._apply(applied, name, digest, {**made, "metadata": metadata}, write)
                return
            log.warning("%s %s is refused: %s", *name, error)
            applied.refused[name] = (digest, error.reason, self._clock() + AGAIN_SECONDS)
            return
        applied.digests[name] = digest

    async def _claims(self, inputs: Inputs, applied: Applied) -> Mapping[str, FoundClaim]:
        """Claims that are there and will be applied: they keep size and class, whatever the manifest says."""
        found = {}
        for participant in inputs.here:
            checkpoint = inputs.consortium.local_entry(participant).volumes.checkpoint
            if checkpoint is None or checkpoint.size is None:
                continue
            name = of_participant(inputs.owner.name, participant)
            if (CLAIM, name) in applied.digests:
                continue
            claim = await self._cluster.read("v1", CLAIM, inputs.owner.namespace, name)
            if claim is not None:
                spec = claim["spec"]
                size = spec["resources"]["requests"]["storage"]
                found[participant] = FoundClaim(size=size, storage_class=spec.get("storageClassName"))
        return found

    def _coordinators(self, inputs: Inputs) -> int:
        """None while suspended, once the last node has taken leave."""
        return 0 if inputs.consortium.spec.suspend and not self._nodes(inputs.key) else 1

    def _outdated(self, inputs: Inputs, made: Object) -> bool:
        """Whether there is a coordinator of another configuration or image still: there are never two."""
        wanted = made["spec"]["template"]["metadata"]["labels"][TEMPLATE]
        own = [pod for pod in self._alive(inputs.key) if _role(pod) == "coordinator"]
        return any(_label(pod, TEMPLATE) != wanted for pod in own)

    async def rest_coordinator(self, inputs: Inputs) -> None:
        """After the end, when the last node has taken leave, nobody needs it any more."""
        pods = self._alive(inputs.key)
        if not self._nodes(inputs.key) and any(_role(pod) == "coordinator" for pod in pods):
            namespace, name = inputs.owner.namespace, coordinator(inputs.owner.name)
            if (applied := self._applied.get(inputs.owner.uid)) is not None:
                applied.digests.pop((REPLICAS, name), None)  # the next attempt wants it back
            try:
                await self._cluster.merge("apps/v1", REPLICAS, namespace, name, {"spec": {"replicas": 0}})
            except ClusterError as error:
                if error.status != 404:  # it may be gone, and its pod hang on a machine that is lost
                    raise

    # Jobs

    async def jobs(self, inputs: Inputs, run: frozenset[str], *, make: bool) -> None:
        """Every participant's Job of this attempt, suspended unless in `run`; all other Jobs stop: those of other
        attempts, and of participants that aren't to run here any more.

        One that has ended is left alone; one that is gone is made again, once its pod is gone too: two pods would
        write to one checkpoint. One that is there is only ever suspended or released: its template can't be changed.
        """
        key, applied = inputs.key, self._applied.setdefault(inputs.owner.uid, Applied())
        for name in self._world.buried(key):  # also one that came and went between two looks
            applied.digests.pop(("Job", name), None)
        there = {}
        for found in self._world.children(key, "Job"):
            if _is_of(found, inputs):
                there[_label(found, PARTICIPANT)] = found
            else:
                await self._suspend(applied, found, suspend=True)
        others = self._world.namesakes(key, "Job")
        busy = {_label(each, PARTICIPANT) for each in (*others, *self._nodes(key))}
        for participant in inputs.here:
            job_there, suspend = there.get(participant), participant not in run
            if job_there is not None:
                # Should it go, it is made again.
                applied.digests.pop(("Job", job_there["metadata"]["name"]), None)
                await self._suspend(applied, job_there, suspend=suspend)
            elif make and participant not in busy:
                await self._make(applied, job(inputs, participant, suspend), suspend)

    async def _make(self, applied: Applied, made: Object, suspend: bool) -> None:
        name, mark = ("Job", made["metadata"]["name"]), f"suspend={suspend}"
        if applied.due(name, mark, self._clock()):  # or else it was made, and the watch has not told yet
            await self._apply(applied, name, mark, made, self._create)

    async def _create(self, made: Object) -> None:
        """Make a Job. To apply it would cost the API server a third more, and nothing is ever taken out of one."""
        try:
            await self._cluster.create(made)
        except ClusterError as error:
            if not error.exists:  # a quota that others change at that moment is a conflict too
                raise

    async def stop(self, key: Key) -> None:
        """Suspend all Jobs of a consortium, whatever its manifest says."""
        applied = self._applied.setdefault(self._world.consortia[key]["metadata"]["uid"], Applied())
        for found in self._world.children(key, "Job"):
            await self._suspend(applied, found, suspend=True)

    async def _suspend(self, applied: Applied, found: Object, *, suspend: bool) -> None:
        namespace, name = (found["metadata"][key] for key in ("namespace", "name"))
        if bool(found["spec"].get("suspend")) == suspend or _over(found):
            applied.refused.pop(("Job", name), None)
            return

        async def merge(changes: Object) -> None:
            await self._cluster.merge("batch/v1", "Job", namespace, name, changes)

        mark = f"spec.suspend={suspend}"
        if applied.due(("Job", name), mark, self._clock()):
            await self._apply(applied, ("Job", name), mark, {"spec": {"suspend": suspend}}, merge)
            applied.digests.pop(("Job", name), None)  # the watch tells what has become of it

    # What is there

    def holding(self, key: Key) -> tuple[str, ...]:
        """Participants with a pod that has not ended, whosever it is by this name, or a Job that may make one."""
        jobs = self._world.children(key, "Job")
        may = [job for job in jobs if not job["spec"].get("suspend") and not _over(job)]
        return tuple(sorted({_label(each, PARTICIPANT) for each in (*may, *self._nodes(key))}))

    def _alive(self, key: Key) -> Sequence[Object]:
        """Pods that have not ended, also those of one by the same name before."""
        pods = [*self._world.children(key, "Pod"), *self._world.namesakes(key, "Pod")]
        return [pod for pod in pods if pod["status"].get("phase") not in ("Succeeded", "Failed")]

    def _nodes(self, key: Key) -> Sequence[Object]:
        return [pod for pod in self._alive(key) if _role(pod) != "coordinator"]

    def _digest_of(self, inputs: Inputs) -> str:
        """Of all that decides what is applied, keys apart."""
        uid, coordinators = inputs.owner.uid, self._coordinators(inputs)
        key = (inputs.generation, coordinators)
        if self._digests.get(uid, (None, ""))[0] != key:
            told = {
                "operator": VERSION,
                "uid": uid,
                "spec": inputs.consortium.spec.model_dump(mode="json", by_alias=True),
                "settings": inputs.settings.model_dump(mode="json"),
                "coordinators": coordinators,
            }
            self._digests[uid] = (key, f"sha256:{digest_of(told)}")
        return self._digests[uid][1]


def digest_of(made: Object) -> str:
    """Digest of an object's content."""
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def _first_renewal(keys: Keys) -> str:
    """When the first of the leaves needs a successor; empty where there are none."""
    leaves = [*keys.leaves.values(), *([keys.coordinator] if keys.coordinator else [])]
    first = min(map(renewal_time, leaves), default=None)
    # Whole seconds, and none too early.
    return "" if first is None else moment(first + timedelta(seconds=1), "seconds")


def _over(found: Object) -> bool:
    """Whether a Job has ended for good."""
    conditions = found["status"].get("conditions") or []
    return any(
        each.get("type") in ("Complete", "Failed") and each.get("status") == "True" for each in conditions
    )


def _label(of: Object, label: str) -> str:
    return str((of["metadata"].get("labels") or {}).get(label, ""))


def _is_of(found: Object, inputs: Inputs) -> bool:
    """Whether a Job or a pod is one of this attempt, of a participant that is to run here."""
    return _label(found, ATTEMPT) == str(inputs.attempt) and _label(found, PARTICIPANT) in inputs.here


def _role(pod: Object) -> str:
    return _label(pod, ROLE)
