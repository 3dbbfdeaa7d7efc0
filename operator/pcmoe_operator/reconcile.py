"""One consortium, from its manifest to what runs: read, apply, observe, say. Level-based: it looks at what is, never at
what changed, so it may be called at any time and any number of times.
"""

import hashlib
import json
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pcmoe_operator.answers import CoordinatorSeen, NodeSeen
from pcmoe_operator.cluster import Cluster
from pcmoe_operator.conditions import changed, ended, rejected, status_of
from pcmoe_operator.constants import OPERATOR
from pcmoe_operator.errors import Fault, ManifestError
from pcmoe_operator.keys import KeyStore
from pcmoe_operator.objects.bundle import bundle
from pcmoe_operator.objects.inputs import FoundClaim, Inputs
from pcmoe_operator.objects.jobs import job
from pcmoe_operator.objects.names import PARTICIPANT, ROLE, Owner, of_participant
from pcmoe_operator.objects.needs import cluster_faults
from pcmoe_operator.observe import Seen, observe
from pcmoe_operator.plan import make_plan
from pcmoe_operator.settings import Settings
from pcmoe_operator.spec import parse
from pcmoe_operator.standing import Intent, Observation
from pcmoe_operator.world import Key, Object, World

log = logging.getLogger(__name__)

Ask = Callable[[str], Awaitable[bytes | None]]
"""Given a URL: what it answers, or None."""
PARSED = ("apiVersion", "kind", "metadata", "spec")


class Reconciler:
    """Looks after every consortium of the namespaces it was given."""

    def __init__(self, cluster: Cluster, settings: Settings, world: World, ask: Ask) -> None:
        self._cluster = cluster
        self._settings = settings
        self._world = world
        self._ask = ask
        self._keys = KeyStore(cluster)
        self._applied: dict[str, dict[tuple[str, str], str]] = {}
        """By the consortium's uid: digests of what was applied last, by kind and name."""

    async def reconcile(self, key: Key) -> float | None:
        """Bring one consortium to where its manifest wants it; seconds after which to look again."""
        raw = self._world.consortia.get(key)
        if raw is None or (raw.get("spec") or {}).get("managedBy", OPERATOR) != OPERATOR:
            return None
        try:
            inputs = self._inputs(raw)
            faults: Sequence[Fault] = cluster_faults(inputs)
        except ManifestError as error:
            faults = error.faults
        if faults:
            await self._say(raw, rejected(raw.get("status"), _generation(raw), faults, _now()))
            return None
        end = ended(raw.get("status"), inputs.attempt)
        suspend = bool(inputs.consortium.spec.suspend)
        if end is None:
            await self._apply(inputs, bundle(inputs, await self._keys.of(inputs), await self._claims(inputs)))
        await self._apply_jobs(inputs, suspend=suspend or end == "Failed", make=end is None)
        observation = await self._observe(raw, inputs, Intent.SUSPEND if suspend else Intent.RUN)
        status = status_of(raw.get("status"), observation, _now())
        await self._say(raw, status)
        return None if end else self._look_again(status)

    def resync(self, key: Key) -> None:
        """Forget what was applied to a consortium: the next look applies all of it again, whatever others did."""
        raw = self._world.consortia.get(key)
        if raw is not None:
            self._applied.pop(raw["metadata"]["uid"], None)

    def gone(self, uid: str) -> None:
        """A consortium was deleted; what it owned goes with it."""
        self._applied.pop(uid, None)
        self._keys.forget(uid)

    # What it is

    def _inputs(self, raw: Object) -> Inputs:
        consortium = parse({key: raw[key] for key in PARSED if key in raw})
        metadata = raw["metadata"]
        owner = Owner(name=metadata["name"], namespace=metadata["namespace"], uid=metadata["uid"])
        return Inputs(owner=owner, consortium=consortium, plan=make_plan(consortium), settings=self._settings)

    async def _claims(self, inputs: Inputs) -> Mapping[str, FoundClaim]:
        """Claims that are there: they keep their size and class, whatever the manifest says by now."""
        found = {}
        for name in inputs.here:
            checkpoint = inputs.consortium.local_entry(name).volumes.checkpoint
            if checkpoint is None or checkpoint.size is None or self._known(inputs):
                continue
            claim = await self._cluster.read(
                "v1",
                "PersistentVolumeClaim",
                inputs.owner.namespace,
                of_participant(inputs.owner.name, name),
            )
            if claim is not None:
                spec = claim["spec"]
                size = spec["resources"]["requests"]["storage"]
                found[name] = FoundClaim(size=size, storage_class=spec.get("storageClassName"))
        return found

    # What is applied

    def _known(self, inputs: Inputs) -> bool:
        return inputs.owner.uid in self._applied

    async def _apply(self, inputs: Inputs, objects: Sequence[Object]) -> None:
        """Apply what differs from what was applied last."""
        applied = self._applied.get(inputs.owner.uid, {})
        for made in objects:
            key, digest = (made["kind"], made["metadata"]["name"]), _digest(made)
            if key[0] == "PersistentVolumeClaim" and key in applied:
                continue  # a claim is made once
            if applied.get(key) != digest:
                await self._cluster.apply(made)
                applied[key] = digest
        self._applied[inputs.owner.uid] = applied

    async def _apply_jobs(self, inputs: Inputs, *, suspend: bool, make: bool) -> None:
        """Every participant's Job, suspended or not; one that has ended is left alone, one that is gone made again."""
        applied = self._applied.setdefault(inputs.owner.uid, {})
        key = (inputs.owner.namespace, inputs.owner.name)
        there = {found["metadata"]["name"]: found for found in self._world.children(key, "Job")}
        for participant in inputs.here:
            made = job(inputs, participant, suspend)
            name = made["metadata"]["name"]
            found = there.get(name)
            over = found is not None and any(
                each.get("type") in ("Complete", "Failed") and each.get("status") == "True"
                for each in found["status"].get("conditions") or []
            )
            if over or (found is None and not make):
                continue
            mark = f"suspend={suspend}"
            as_wanted = found is not None and bool(found["spec"].get("suspend")) == suspend
            if as_wanted or (found is None and applied.get(("Job", name)) == mark):
                continue
            await self._cluster.apply(made)
            applied["Job", name] = mark

    # What is seen

    async def _observe(self, raw: Object, inputs: Inputs, intent: Intent) -> Observation:
        key = (inputs.owner.namespace, inputs.owner.name)
        pods, jobs = self._world.children(key, "Pod"), self._world.children(key, "Job")
        seen = observe(inputs.owner.name, inputs.here, inputs.attempt, jobs, pods)
        if intent is Intent.RUN and any(
            each.job is not None and each.pod is None for each in seen.participants.values()
        ):
            events = await self._cluster.list("events.k8s.io/v1", "Event", inputs.owner.namespace)
            seen = observe(inputs.owner.name, inputs.here, inputs.attempt, jobs, pods, events)
        answers = {_name(pod): await self._status_of(pod) for pod in pods}
        coordinator = answers.get("")
        return Observation(
            generation=_generation(raw),
            consortium=inputs.consortium,
            plan_digest=inputs.plan.digest,
            seen=seen,
            coordinator=CoordinatorSeen.parse(coordinator) if coordinator else None,
            nodes=_nodes(seen, answers),
            intent=intent,
        )

    async def _status_of(self, pod: Object) -> bytes | None:
        address = pod["status"].get("podIP")
        running = pod["status"].get("phase") == "Running"
        if not address or not running or pod["metadata"].get("deletionTimestamp"):
            return None
        host = f"[{address}]" if ":" in address else address
        return await self._ask(f"http://{host}:{self._settings.status_port}/status")

    # What is said

    async def _say(self, raw: Object, status: Mapping[str, Any]) -> None:
        if not changed(raw.get("status"), dict(status), _now(), self._settings.status_seconds):
            return
        metadata = {key: raw["metadata"][key] for key in ("name", "namespace")}
        head = {"apiVersion": raw["apiVersion"], "kind": raw["kind"], "metadata": metadata}
        await self._cluster.apply_status({**head, "status": dict(status)})

    def _look_again(self, status: Mapping[str, Any]) -> float | None:
        """Progress is asked for; everything else wakes us by itself."""
        if status["state"] in ("Suspended", "Completed", "Failed"):
            return None
        crowd = len(self._world.consortia) / 50  # thousands of consortia share the same few requests a second
        return float(max(self._settings.status_seconds, crowd) * random.uniform(1.0, 1.2))


def _nodes(seen: Seen, answers: Mapping[str, bytes | None]) -> Mapping[str, NodeSeen]:
    """What the newest pod of each participant says."""
    found = {}
    for name in seen.participants:
        answer = answers.get(name)
        node = NodeSeen.parse(answer) if answer else None
        if node is not None:
            found[name] = node
    return found


def _name(pod: Object) -> str:
    """The participant of a node's pod; empty for the coordinator's."""
    labels = pod["metadata"].get("labels") or {}
    return "" if labels.get(ROLE) == "coordinator" else str(labels.get(PARTICIPANT, "?"))


def _digest(made: Object) -> str:
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def _generation(raw: Object) -> int:
    return int(raw["metadata"].get("generation", 0))


def _now() -> datetime:
    return datetime.now(UTC)
