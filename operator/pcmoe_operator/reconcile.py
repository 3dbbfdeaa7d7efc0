"""One consortium, from its manifest to what runs: read, apply, observe, decide, say, do. Level-based: it looks at what
is, never at what changed, so it may be called at any time and any number of times. What is decided is written to the
status before it is done, so whoever starts anew decides the same.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pcmoe_operator.answers import CoordinatorSeen, NodeSeen, text_at
from pcmoe_operator.applying import AGAIN_SECONDS, Applier
from pcmoe_operator.cluster import Cluster, ClusterError
from pcmoe_operator.conditions import ENDS, changed, ended, rejected, said, status_of
from pcmoe_operator.constants import OPERATOR
from pcmoe_operator.errors import Fault, ManifestError
from pcmoe_operator.gang import Decision, Limits, Release, decide, mine_of
from pcmoe_operator.keys import KeyStore
from pcmoe_operator.objects.inputs import Inputs
from pcmoe_operator.objects.names import PARTICIPANT, ROLE, Owner
from pcmoe_operator.objects.needs import cluster_faults
from pcmoe_operator.observe import ParticipantSeen, Seen, observe
from pcmoe_operator.plan import make_plan
from pcmoe_operator.reasons import Reason
from pcmoe_operator.settings import Settings
from pcmoe_operator.spec import parse
from pcmoe_operator.standing import Intent, Observation, Settled
from pcmoe_operator.times import time_of
from pcmoe_operator.world import Key, Object, World

log = logging.getLogger(__name__)

Ask = Callable[[str], Awaitable[bytes | None]]
"""Given a URL: what it answers, or None."""
STARTING_SECONDS = 30
"""A pod that has a machine and no container for longer may tell why by its events."""
PODLESS_SECONDS = 5
"""A Job that is to have a pod and has none for longer, too: to list events of a whole namespace is dear."""
LOOKS_PER_SECOND = 10
"""Consortia that are asked how they get on, however many there are: with thousands of them each is asked less often."""
KEPT = 1000
"""Manifests that are kept parsed, with their plans: 26 KiB each with four participants, and half of a look."""
RESTING = (*ENDS, "Suspended", "Invalid")
"""States of consortia that nobody need ask how they get on."""
PARSED = ("apiVersion", "kind", "metadata", "spec")


class Reconciler:
    """Looks after every consortium of the namespaces it was given."""

    def __init__(self, cluster: Cluster, settings: Settings, world: World, ask: Ask) -> None:
        self._cluster = cluster
        self._settings = settings
        self._world = world
        self._ask = ask
        self._keys = KeyStore(cluster)
        self._parsed: dict[str, Inputs] = {}
        """By uid, those that were looked at last."""
        self._turns = asyncio.Lock()
        """Held from the decision that a consortium tries until others can see it."""
        self._applier = Applier(cluster, world)

    async def reconcile(self, key: Key) -> float | None:
        """Bring one consortium to where its manifest wants it; seconds after which to look again."""
        raw = self._world.consortia.get(key)
        if raw is None:
            return None
        try:
            return await self._look(key, raw)
        finally:
            uid = raw["metadata"]["uid"]
            if self._world.consortia.get(key, {}).get("metadata", {}).get("uid") != uid:
                self.gone(uid)  # meanwhile

    async def _look(self, key: Key, raw: Object) -> float | None:
        if (raw.get("spec") or {}).get("managedBy", OPERATOR) != OPERATOR:
            return None
        if raw["metadata"].get("deletionTimestamp"):  # what goes with it must not be made again
            return None
        try:
            inputs = self._inputs(raw)
            faults: Sequence[Fault] = cluster_faults(inputs)
        except ManifestError as error:
            faults = error.faults
        if faults:
            return await self._reject(key, raw, faults)
        if ended(raw.get("status"), inputs.attempt):
            return await self._after_the_end(raw, inputs)
        if inputs.consortium.spec.suspend:  # first of all
            await self._applier.jobs(inputs, frozenset(), make=False)
        if not self._applied(raw, inputs).digest:
            await self._applier.objects(inputs, await self._keys.of(inputs))
        return await self._go_on(raw, inputs)

    async def _reject(self, key: Key, raw: Object, faults: Sequence[Fault]) -> float | None:
        """Say what is wrong; nothing may keep a run from being stopped, a manifest that breaks rules neither."""
        stopping, uid = None, raw["metadata"]["uid"]
        if raw["spec"].get("suspend") is True:
            await self._applier.stop(key)
            stopping = self._applier.holding(key)
        refused = self._applier.refusals(uid)
        status = rejected(raw.get("status"), _generation(raw), faults, _now(), stopping, refused)
        await self._say(raw, status)
        return self._look_again(key, status, refused)

    async def _after_the_end(self, raw: Object, inputs: Inputs) -> float | None:
        """Nothing is made or begun any more; what still runs after a failure is stopped."""
        if inputs.consortium.spec.suspend or ended(raw.get("status"), inputs.attempt) == "Failed":
            await self._applier.jobs(inputs, frozenset(), make=False)
        await self._applier.rest_coordinator(inputs)
        intent = Intent.SUSPEND if inputs.consortium.spec.suspend else Intent.RUN
        status = await self._status(raw, inputs, await self._seen(inputs), intent, None)
        return self._look_again(inputs.key, status, self._applier.refusals(inputs.owner.uid))

    async def _go_on(self, raw: Object, inputs: Inputs) -> float | None:
        """Decide which Jobs run, say so, then do so."""
        if inputs.consortium.spec.suspend:
            seen = await self._seen(inputs)
            status = await self._status(raw, inputs, seen, Intent.SUSPEND, None)
            await self._applier.jobs(inputs, frozenset(), make=True)
            return self._look_again(inputs.key, status, self._applier.refusals(inputs.owner.uid))
        waited = Release.read(raw.get("status") or {}, inputs.attempt)
        seen = await self._seen(inputs)
        decision = self._decide(raw, inputs, seen)
        if waited and waited.waits and not decision.release.waits:
            async with self._turns:  # two that try at once would stand in each other's way
                decision = self._decide(raw, inputs, seen)
                status = await self._released(raw, inputs, seen, decision)
        else:
            status = await self._released(raw, inputs, seen, decision)
        if status["state"] not in ENDS:
            await self._applier.jobs(inputs, decision.run, make=True)
        again = self._look_again(inputs.key, status, self._applier.refusals(inputs.owner.uid))
        soon = [seconds for found in seen.participants.values() if (seconds := _mute_in(found) or 0) > 0]
        return min((each for each in (again, decision.look_in, *soon) if each is not None), default=None)

    async def _released(self, raw: Object, inputs: Inputs, seen: Seen, decision: Decision) -> dict[str, Any]:
        intent = Intent.YIELD if decision.release.waits else Intent.RUN
        return await self._status(raw, inputs, seen, intent, decision.release)

    def _decide(self, raw: Object, inputs: Inputs, seen: Seen) -> Decision:
        settings = self._settings
        limits = Limits(
            unschedulable=settings.unschedulable_seconds,
            turn=settings.turn_seconds,
            retry=settings.retry_seconds,
        )
        mine = mine_of(raw, seen, inputs.attempt)
        return decide(mine, self._world.rivals(inputs.key), _now(), limits)

    async def stop(self, key: Key) -> float | None:
        """Suspend all Jobs of a consortium of which nothing else can be done; seconds after which to try again."""
        raw = self._world.consortia.get(key)
        if raw is None:
            return None
        await self._applier.stop(key)
        return AGAIN_SECONDS if self._applier.refusals(raw["metadata"]["uid"]) else None

    def resync(self, key: Key) -> None:
        """The next look applies everything to a consortium again, whatever others did meanwhile."""
        raw = self._world.consortia.get(key)
        if raw is not None:
            self._applier.forget(raw["metadata"]["uid"])

    def gone(self, uid: str) -> None:
        """A consortium was deleted; what it owned goes with it."""
        self._applier.gone(uid)
        self._keys.forget(uid)
        self._parsed.pop(uid, None)

    # What it is

    def _inputs(self, raw: Object) -> Inputs:
        """What follows from a manifest; kept for a while, since looks at one consortium come one after the other."""
        metadata, generation = raw["metadata"], _generation(raw)
        owner = Owner(name=metadata["name"], namespace=metadata["namespace"], uid=metadata["uid"])
        found = self._parsed.pop(owner.uid, None)
        if found is None or found.generation != generation:
            consortium = parse({key: raw[key] for key in PARSED if key in raw})
            plan = make_plan(consortium)
            found = Inputs(
                owner=owner, consortium=consortium, plan=plan, settings=self._settings, generation=generation
            )
        self._parsed[owner.uid] = found
        if len(self._parsed) > KEPT:
            del self._parsed[next(iter(self._parsed))]
        return found

    def _applied(self, raw: Object, inputs: Inputs) -> Settled:
        """Whether all that follows from the manifest has been applied, and no certificate is due."""
        status = raw.get("status") or {}
        written = (text_at(status, "applied"), text_at(status, "certificateRenewalTime"))
        return self._applier.settled(inputs, Settled(digest=written[0], renewal=written[1]))

    # What is seen

    async def _seen(self, inputs: Inputs) -> Seen:
        """What there is of the participants; events are asked for only where nothing else says what is wrong."""
        key = inputs.key
        pods, jobs = self._world.children(key, "Pod"), self._world.children(key, "Job")
        seen = observe(inputs.owner.name, inputs.here, inputs.attempt, jobs, pods)
        mute = [
            seconds <= 0 for found in seen.participants.values() if (seconds := _mute_in(found)) is not None
        ]
        if inputs.consortium.spec.suspend or not any(mute):
            return seen
        try:
            events = await self._cluster.list("events.k8s.io/v1", "Event", inputs.owner.namespace)
        except ClusterError as error:  # of a namespace with very many, perhaps; they only tell why
            log.warning("what is wrong with %s can't be asked for: %s", inputs.owner.name, error)
            return seen
        return observe(inputs.owner.name, inputs.here, inputs.attempt, jobs, pods, events)

    async def _observation(
        self, raw: Object, inputs: Inputs, seen: Seen, intent: Intent, release: Release | None
    ) -> Observation:
        pods = self._world.children(inputs.key, "Pod")
        shown = {found.pod.name for found in seen.participants.values() if found.pod is not None}
        urls = {_name(pod): self._url_of(pod) for pod in sorted(pods, key=_born) if _is_asked(pod, shown)}
        asked = {name: url for name, url in urls.items() if url is not None}
        # All at once: each that doesn't answer takes its whole time.
        answers = dict(zip(asked, await asyncio.gather(*map(self._ask, asked.values())), strict=True))
        coordinator = answers.get("")
        return Observation(
            generation=_generation(raw),
            consortium=inputs.consortium,
            plan_digest=inputs.plan.digest,
            seen=seen,
            coordinator=CoordinatorSeen.parse(coordinator) if coordinator else None,
            nodes=_nodes(seen, answers),
            intent=intent,
            release=release,
            restarts_allowed=self._settings.restarts_without_progress,
            applied=self._applied(raw, inputs),
            refused=self._applier.refusals(inputs.owner.uid),
            holding=self._applier.holding(inputs.key),
        )

    def _url_of(self, pod: Object) -> str | None:
        """Where a pod that runs says how it gets on."""
        address = pod["status"].get("podIP")
        running = pod["status"].get("phase") == "Running"
        if not address or not running or pod["metadata"].get("deletionTimestamp"):
            return None
        host = f"[{address}]" if ":" in address else address
        return f"http://{host}:{self._settings.status_port}/status"

    # What is said

    async def _status(
        self, raw: Object, inputs: Inputs, seen: Seen, intent: Intent, release: Release | None
    ) -> dict[str, Any]:
        """What there is to say, said."""
        observation = await self._observation(raw, inputs, seen, intent, release)
        if any(map(_misses_something, seen.participants.values())):
            self._applier.missed(inputs.owner.uid)
        status = status_of(raw.get("status"), observation, _now())
        await self._say(raw, status)
        return status

    async def _say(self, raw: Object, status: Mapping[str, Any]) -> None:
        if not changed(raw.get("status"), dict(status), _now(), self._settings.status_seconds):
            return
        await self._cluster.write_status(raw, status)
        metadata = raw["metadata"]
        self._world.wrote((metadata["namespace"], metadata["name"]), metadata["uid"], dict(status))

    def _look_again(self, key: Key, status: dict[str, Any], refused: Sequence[str]) -> float | None:
        """Progress is asked for, and what is left to say is said; everything else wakes us by itself."""
        if status["state"] in RESTING:
            if not said(self._world.consortia.get(key, {}).get("status"), status):
                return self._settings.status_seconds
            return AGAIN_SECONDS if refused else None
        crowd = len(self._world.consortia) / LOOKS_PER_SECOND
        return float(max(self._settings.status_seconds, crowd) * random.uniform(1.0, 1.2))


def _mute_in(found: ParticipantSeen) -> float | None:
    """In how many seconds only events can tell why a participant has no pod, or its pod no container; None: never."""
    job, pod = found.job, found.pod
    if pod is None:
        since, patience = time_of(job.started if job and not job.suspended else ""), PODLESS_SECONDS
    else:
        waits = pod.phase == "Pending" and pod.trouble is None
        since, patience = time_of(pod.placed_since if waits else ""), STARTING_SECONDS
    return None if since is None else patience - (_now() - since).total_seconds()


def _misses_something(found: ParticipantSeen) -> bool:
    trouble = found.pod.trouble if found.pod else None
    return trouble is not None and trouble.reason is Reason.ConfigurationMissing


def _nodes(seen: Seen, answers: Mapping[str, bytes | None]) -> Mapping[str, NodeSeen]:
    """What the newest pod of each participant says."""
    found = {}
    for name in seen.participants:
        answer = answers.get(name)
        node = NodeSeen.parse(answer) if answer else None
        if node is not None:
            found[name] = node
    return found


def _is_asked(pod: Object, shown: Collection[str]) -> bool:
    """Whether a pod is one of those that are shown, or a coordinator that has not ended."""
    return pod["metadata"]["name"] in shown or (_name(pod) == "" and pod["status"].get("phase") == "Running")


def _born(pod: Object) -> str:
    return str(pod["metadata"].get("creationTimestamp", ""))


def _name(pod: Object) -> str:
    """The participant of a node's pod; empty for the coordinator's."""
    labels = pod["metadata"].get("labels") or {}
    return "" if labels.get(ROLE) == "coordinator" else str(labels.get(PARTICIPANT, "?"))


def _generation(raw: Object) -> int:
    return int(raw["metadata"].get("generation", 0))


def _now() -> datetime:
    return datetime.now(UTC)
