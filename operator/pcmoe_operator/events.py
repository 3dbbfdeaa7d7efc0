"""Events on a consortium: what `kubectl describe pcmoe` shows of the changes of its conditions.

What lasts only for moments is not told. The same words of the same consortium are one Event, whose name follows from
them; when they come again its count rises, with one write per `QUIET_SECONDS` at most, also by an operator that was
started anew. Whether an Event can be written changes nothing else.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pcmoe_operator.cluster import Cluster, ClusterError
from pcmoe_operator.constants import OPERATOR
from pcmoe_operator.reasons import Reason
from pcmoe_operator.times import moment

log = logging.getLogger(__name__)

Told = Mapping[str, tuple[str, str]]
"""(status, reason) by the type of condition."""
TELLING = ("Accepted", "Failed", "Completed", "Suspended", "Progressing")
"""Conditions whose changes are told; the others say the same in other words."""
UNSAID = frozenset(
    {
        *(Reason.Starting.name, Reason.Loading.name, Reason.Suspending.name, Reason.NotSuspended.name),
        *(Reason.RoundsLeft.name, Reason.NoFailure.name, Reason.RunOver.name),
    }
)
"""Reasons that are no news: everybody goes through them, or another condition tells."""
WISHED = frozenset({Reason.SuspendRequested.name})
"""What somebody asked for is no warning."""
MAX_NOTE_BYTES = 1024
SETTLED_SECONDS = 5.0
"""What is so for a shorter time is no news."""
QUIET_SECONDS = 300.0
KEPT_SECONDS = 3600.0
"""The API server forgets an Event after about so long; so do we."""
WAITING = 1000
"""More news than that can't wait to be written; what is too much is left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class News:
    """What is to be told of a consortium."""

    kind: Literal["Normal", "Warning"]
    reason: str
    condition: str
    note: str


def conditions_of(raw: Mapping[str, Any]) -> Told:
    """How the conditions of a consortium stand."""
    found = (raw.get("status") or {}).get("conditions") or []
    return {each["type"]: (each["status"], each["reason"]) for each in found}


def news(before: Told, raw: Mapping[str, Any]) -> Iterator[News]:
    """What has changed since; the same reason once."""
    found = {each["type"]: each for each in (raw.get("status") or {}).get("conditions") or []}
    told = UNSAID if "Accepted" in before else UNSAID | {Reason.Accepted.name}
    for kind in TELLING:
        each = found.get(kind)
        if each is None or before.get(kind) == (each["status"], each["reason"]) or each["reason"] in told:
            continue
        told = told | {each["reason"]}
        yield News(kind=_weight(each), reason=each["reason"], condition=kind, note=_note(each["message"]))


def _weight(condition: Mapping[str, Any]) -> Literal["Normal", "Warning"]:
    """A warning is what somebody should do something about."""
    reason = condition["reason"]
    if reason in WISHED:
        return "Normal"
    known = Reason.__members__.get(reason)
    return "Normal" if known is not None and known.asks_nobody else "Warning"


def _note(message: str) -> str:
    return message.encode()[:MAX_NOTE_BYTES].decode(errors="ignore")


@dataclass(slots=True)
class _Written:
    """An Event that we know of."""

    count: int
    at: float
    """When it was written last, on our clock."""
    unwritten: int = 0
    """How often it came since."""


class Events:
    """Sees consortia as the watch tells of them, and writes what is new of them."""

    def __init__(self, cluster: Cluster, identity: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._identity = identity
        self._clock = clock
        self._stood: dict[str, Told] = {}
        """By the consortium's uid."""
        self._written: dict[tuple[str, str], _Written] = {}
        """By namespace and name of the Event."""
        self._queue: asyncio.Queue[tuple[float, Mapping[str, Any], News]] = asyncio.Queue(WAITING)
        """With the time when each has settled."""

    def saw(self, event: str | None, raw: Mapping[str, Any], *, tell: bool = True) -> None:
        """A consortium as the watch gives it. What was so when it was seen first is no news, nor, unless we are to
        `tell` it, what another one tells.
        """
        uid = raw["metadata"]["uid"]
        if event == "DELETED":
            self._stood.pop(uid, None)
            return
        before, self._stood[uid] = self._stood.get(uid), conditions_of(raw)
        if before is None or not tell:
            return
        metadata = {key: raw["metadata"][key] for key in ("name", "namespace", "uid")}
        regarding = {"apiVersion": raw["apiVersion"], "kind": raw["kind"], **metadata}
        for each in news(before, raw):
            if self._queue.full():
                log.warning("too many Events wait: %s of %s is left out", each.reason, metadata["name"])
            else:
                self._queue.put_nowait((self._clock() + SETTLED_SECONDS, regarding, each))

    async def write(self) -> None:
        """Write what is new, for ever."""
        while True:
            due, regarding, each = await self._queue.get()
            await asyncio.sleep(max(0.0, due - self._clock()))
            stands = self._stood.get(regarding["uid"], {}).get(each.condition)
            if stands is None or stands[1] != each.reason:
                continue
            try:
                await self.tell(regarding, each)
            except ClusterError as error:
                log.info("the Event %s of %s is not written: %s", each.reason, regarding["name"], error)

    async def tell(self, regarding: Mapping[str, Any], each: News) -> None:
        """Write one Event, or raise its count, or only remember it."""
        now = self._clock()
        self._written = {
            name: known for name, known in self._written.items() if now - known.at < KEPT_SECONDS
        }
        words = "\0".join((regarding["uid"], each.reason, each.note))
        name = f"{regarding['name']}.{hashlib.sha256(words.encode()).hexdigest()[:16]}"
        key = (regarding["namespace"], name)
        known = self._written.get(key)
        if known is None:
            known = await self._made(key, regarding, each)
            if known is None:
                return
            self._written[key] = known
        known.unwritten += 1
        if now - known.at < QUIET_SECONDS:
            return
        count = known.count + known.unwritten
        series = {"count": count, "lastObservedTime": _moment()}
        try:
            await self._cluster.merge("events.k8s.io/v1", "Event", *key, {"series": series})
        except ClusterError as error:
            if error.status != 404:
                raise
            await self._made(key, regarding, each)  # the API server has forgotten it
            count = 1
        self._written[key] = _Written(count=count, at=now)

    async def _made(self, key: tuple[str, str], regarding: Mapping[str, Any], each: News) -> _Written | None:
        """Make an Event; what is known of it if it was there already."""
        namespace, name = key
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": _moment(),
            "reportingController": OPERATOR,
            "reportingInstance": self._identity[:128],
            "action": each.condition,
            "reason": each.reason,
            "regarding": dict(regarding),
            "note": each.note,
            "type": each.kind,
        }
        try:
            await self._cluster.create(body)
        except ClusterError as error:
            if error.status != 409:
                raise
            found = await self._cluster.merge("events.k8s.io/v1", "Event", namespace, name, {})
            series = found.get("series") or {}
            seen = datetime.fromisoformat(series.get("lastObservedTime") or found["eventTime"])
            age = (datetime.now(UTC) - seen).total_seconds()
            return _Written(count=int(series.get("count") or 1), at=self._clock() - age)
        self._written[key] = _Written(count=1, at=self._clock())
        return None


def _moment() -> str:
    return moment(datetime.now(UTC), "microseconds")
