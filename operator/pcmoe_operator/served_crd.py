"""Does the API server know every field that this operator reads or writes?

A CRD is not upgraded along with a chart's release by itself. The API server drops fields that it doesn't know from a
manifest, without a word, and refuses a status that has them; so with a CRD that is too old nothing is done
but to suspend.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pcmoe_operator.cluster import Cluster, ClusterError, Object
from pcmoe_operator.constants import API_VERSION, KIND
from pcmoe_operator.part import Part
from pcmoe_operator.reasons import Reason
from pcmoe_operator.schema import Spec

log = logging.getLogger(__name__)

REASON = Reason.CRDTooOld.name
WAIT_SECONDS = 5.0
"""Between two looks while it isn't there or too old."""
SAY_SECONDS = 60.0
"""Between two lines of the log that say so."""
SHOWN = 5
"""As many missing fields are named."""
STATUS: Mapping[str, str] = {
    "": "observedGeneration state round ready loss attempt applied certificateRenewalTime lastUpdateTime",
    "agreement.": "active plan",
    "release.": "state since tries",
    "participants[].": "name state round phase reason message restarts node crashes lastCrash",
    "conditions[].": "type status observedGeneration lastTransitionTime reason message",
}
"""What the operator writes into a status."""
STATE_OF_MANIFEST = "Accepted"
"""The condition that tells of it."""


def needed() -> set[str]:
    """Every field that must be served, such as `spec.local[].gpus`."""
    return {f"spec.{path}" for path in _fields(Spec)} | {
        f"status.{where}{name}" for where, names in STATUS.items() for name in names.split()
    }


def missing(document: Object) -> tuple[str, ...]:
    """The fields of `needed` that an OpenAPI document of the API lacks; all of them if it lacks the kind."""
    schemas = document.get("components", {}).get("schemas", {}).values()
    kinds = [each for each in schemas if _is_ours(each)]
    served = {path for schema in kinds for path in _served(schema)}
    return tuple(sorted(needed() - served))


def refused(raw: Object, fields: tuple[str, ...], now: str) -> Object:
    """The status of a consortium that nothing is done for; all that was said of what runs stays."""
    status: Object = raw.get("status") or {}
    old = {each["type"]: each for each in status.get("conditions") or []}
    was = old.get(STATE_OF_MANIFEST, {})
    condition = {
        "type": STATE_OF_MANIFEST,
        "status": "False",
        "observedGeneration": int(raw["metadata"].get("generation", 0)),
        "lastTransitionTime": was["lastTransitionTime"] if was.get("status") == "False" else now,
        "reason": REASON,
        "message": f"{sentence(fields)}; until then this consortium can only be suspended, and what runs goes on",
    }
    known = {name: value for name, value in condition.items() if f"status.conditions[].{name}" not in fields}
    return {**status, "conditions": list({**old, STATE_OF_MANIFEST: known}.values())}


def sentence(fields: tuple[str, ...]) -> str:
    """What is the matter, and what to do."""
    more = f" and {len(fields) - SHOWN} more" if len(fields) > SHOWN else ""
    return (
        f"the CRD in this cluster is older than the operator: it lacks {', '.join(fields[:SHOWN])}{more}; "
        "apply the crd.yaml of the operator's version"
    )


class ServedCRD:
    """Watches over what is served; `missing` is what the API lacked when last looked at."""

    def __init__(self, cluster: Cluster, changed: Callable[[], None]) -> None:
        self._cluster = cluster
        self._changed = changed
        self._said = (0.0, "")
        self.missing: tuple[str, ...] = ()

    async def there(self) -> None:
        """Wait until the API is served and one look at it has succeeded."""
        while not await self.look():
            await asyncio.sleep(WAIT_SECONDS)

    async def follow(self, every_seconds: float) -> None:
        """Look again and again, for ever; more often while something is missing."""
        while True:
            await asyncio.sleep(min(WAIT_SECONDS, every_seconds) if self.missing else every_seconds)
            await self.look()

    async def look(self) -> bool:
        """One look; whether it has told anything. What isn't allowed to be seen counts as good."""
        try:
            document = await self._cluster.served()
        except ClusterError as error:
            if error.status in (401, 403):
                self._say(f"the served CRD can't be compared with this operator's: {error}")
                self.missing = ()
                return True
            self._say(f"the served CRD can't be read: {error}")
            return False
        if document is None:
            self._say(f"the API {API_VERSION} isn't served here: apply crd.yaml; waiting for it")
            return False
        before, self.missing = self.missing, missing(document)
        if self.missing:
            self._say(f"{REASON}: {sentence(self.missing)}; until then consortia can only be suspended")
        elif before:
            log.info("the CRD is new enough now")
        if before != self.missing:
            self._changed()
        return True

    def _say(self, line: str) -> None:
        """Warn, but the same only every minute."""
        now = time.monotonic()
        if line != self._said[1] or now - self._said[0] >= SAY_SECONDS:
            log.warning("%s", line)
            self._said = (now, line)


def _is_ours(schema: Object) -> bool:
    return any(each.get("kind") == KIND for each in schema.get("x-kubernetes-group-version-kind") or ())


def _fields(model: type[Part], path: str = "") -> Iterator[str]:
    """The leaves below a type of the manifest, and the objects among them that say nothing of what is inside."""
    for name, field in model.model_fields.items():
        where = f"{path}{field.alias or name}"
        inner, many = _part(field.annotation)
        if inner is None:
            yield where
        else:
            yield from _fields(inner, f"{where}[]." if many else f"{where}.")


def _part(annotation: Any) -> tuple[type[Part] | None, bool]:
    """The type of object that a field holds, if it does, and whether it holds many."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation, False
    origin = get_origin(annotation)
    if origin in (Union, UnionType, Annotated):
        return next((found for each in get_args(annotation) if (found := _part(each))[0]), (None, False))
    if origin is tuple:
        return _part(get_args(annotation)[0])[0], True
    return None, False


def _served(schema: Object, path: str = "") -> Iterator[str]:
    """The leaves of a served schema, named in the same way."""
    for name, child in (schema.get("properties") or {}).items():
        where, items = f"{path}{name}", child.get("items") or {}
        if child.get("properties"):
            yield from _served(child, f"{where}.")
        elif items.get("properties"):
            yield from _served(items, f"{where}[].")
        else:
            yield where
