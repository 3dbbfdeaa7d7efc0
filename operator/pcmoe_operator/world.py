"""What watches have told: consortia whole, their Jobs and pods cut down to what is looked at."""

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from pcmoe_operator.constants import KIND
from pcmoe_operator.gang import Rival, rival_of
from pcmoe_operator.objects.names import CONSORTIUM, ROLE, UID

Object = dict[str, Any]
Key = tuple[str, str]
"""(namespace, name) of a consortium."""

METADATA = (
    "name", "namespace", "uid", "resourceVersion", "labels", "ownerReferences", "creationTimestamp",
    "deletionTimestamp",
)  # fmt: skip

STATUS = (
    "phase", "reason", "message", "podIP", "conditions", "containerStatuses", "startTime", "active", "failed",
    "succeeded",
)  # fmt: skip
"""Of a Job's or a pod's status."""
CONTAINER = ("name", "state", "lastState", "restartCount")
WORD = 40
"""A string that is shorter may be a word that many objects have."""


class World:
    """Filled by watches, read by the reconciler; one thread. `changed(key)` is called for every change."""

    def __init__(self, changed: Callable[[Key], None]) -> None:
        self.consortia: dict[Key, Object] = {}
        self._children: dict[Key, dict[tuple[str, str], Object]] = {}
        self._parted: dict[Key, dict[tuple[str, bool], list[Object]]] = {}
        self._unplaced: dict[Key, Rival] = {}
        """Consortia that want machines and have not all of them."""
        self._buried: dict[Key, set[str]] = {}
        """Names of Jobs that were deleted since somebody asked."""
        self._changed = changed

    def saw(self, event: str | None, seen: Object) -> None:
        """An object as a watch gives it; `event` is DELETED for one that is gone."""
        metadata = seen["metadata"]
        namespace, name, kind = metadata["namespace"], metadata["name"], seen.get("kind", "")
        if kind == KIND:
            key = (namespace, name)
            if event == "DELETED":
                self.consortia.pop(key, None)
                self._unplaced.pop(key, None)
                self._buried.pop(key, None)
            else:
                self.consortia[key] = seen
                self._place(key)
        else:
            owner = (metadata.get("labels") or {}).get(CONSORTIUM)
            if owner is None:
                return
            key = (namespace, owner)
            children = self._children.setdefault(key, {})
            if event == "DELETED":
                children.pop((kind, name), None)
                if kind == "Job" and key in self.consortia:
                    self._buried.setdefault(key, set()).add(name)
            else:
                children[kind, name] = seen
            if not children:
                del self._children[key]
        self._parted.pop(key, None)
        self._changed(key)

    def wrote(self, key: Key, uid: str, status: Object) -> None:
        """A status that we wrote: nobody else writes it, so it is the newest, whenever the watch tells."""
        known = self.consortia.get(key)
        if known is not None and known["metadata"]["uid"] == uid:
            self.consortia[key] = {**known, "status": status}
            self._place(key)

    def rivals(self, of: Key) -> list[Rival]:
        """Who else wants machines and has not all of them."""
        return [rival for key, rival in self._unplaced.items() if key != of]

    def _place(self, key: Key) -> None:
        rival = rival_of(self.consortia[key])
        if rival is None or (rival.placed and not rival.release.waits):
            self._unplaced.pop(key, None)
        else:
            self._unplaced[key] = rival

    def buried(self, key: Key) -> set[str]:
        """Names of Jobs that were deleted since the last call, be there another by that name or not."""
        return self._buried.pop(key, set())

    def children(self, key: Key, kind: str) -> list[Object]:
        """The Jobs or pods of a consortium, as it is there now: see `namesakes`."""
        return self._apart(key)[kind, True]

    def namesakes(self, key: Key, kind: str) -> list[Object]:
        """Jobs or pods that have a consortium's labels and aren't its own.

        They are of one that had its name before, or of a Job that was deleted, and on their way out.
        """
        return self._apart(key)[kind, False]

    def _apart(self, key: Key) -> Mapping[tuple[str, bool], list[Object]]:
        """Jobs and pods, each kind's own (True) and others; kept until something is told of any of them.

        What has no owner was restored by somebody, and counts as own.
        """
        if (found := self._parted.get(key)) is not None:
            return found
        told = self._children.get(key, {}).items()
        uid = self.consortia.get(key, {}).get("metadata", {}).get("uid")
        found = {(kind, own): [] for kind in ("Job", "Pod") for own in (True, False)}
        for job in (child for (kind, _), child in told if kind == "Job"):
            found["Job", _is_of(job, {uid})].append(job)
        jobs = {job["metadata"].get("uid") for job in found["Job", True]}
        for pod in (child for (kind, _), child in told if kind == "Pod"):
            labels = pod["metadata"].get("labels") or {}
            own = labels.get(UID, uid) == uid if labels.get(ROLE) == "coordinator" else _is_of(pod, jobs)
            found["Pod", own].append(pod)
        if key in self._children:
            self._parted[key] = found
        return found


def _is_of(child: Object, uids: Collection[str | None]) -> bool:
    owners = [each.get("uid") for each in child["metadata"].get("ownerReferences") or ()]
    return not owners or any(owner in uids for owner in owners)


def trimmed(seen: Object, kind: str) -> Object:
    """An object without what nobody here looks at: thousands of whole pods are hundreds of megabytes."""
    metadata = seen["metadata"]
    if kind == KIND:
        # kubectl keeps the whole manifest in an annotation.
        kept = {key: value for key, value in metadata.items() if key not in ("managedFields", "annotations")}
        return {**seen, "metadata": kept}
    spec, whole = seen.get("spec") or {}, seen.get("status") or {}
    status = {key: whole[key] for key in STATUS if key in whole}
    if "containerStatuses" in status:
        status["containerStatuses"] = [
            {key: each[key] for key in CONTAINER if key in each} for each in status["containerStatuses"]
        ]
    found = {
        "apiVersion": seen.get("apiVersion"),
        "kind": kind,
        "metadata": {key: metadata[key] for key in METADATA if key in metadata},
        "spec": {key: spec[key] for key in ("nodeName", "suspend") if key in spec},
        "status": status,
    }
    return cast(Object, _shared(found))


def _shared(value: Any) -> Any:
    """The same with each key, and each short word, once in memory: JSON brings them anew with every object."""
    if isinstance(value, dict):
        return {sys.intern(key): _shared(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shared(each) for each in value]
    return sys.intern(value) if type(value) is str and len(value) < WORD else value
