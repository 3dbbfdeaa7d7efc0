"""One leader at a time, by a Lease: clock differences between machines don't matter, a paused leader finds out.

A holder renews every fifth of `seconds`, counted on its own clock, which goes on while a machine sleeps. Whoever wants
the lease waits until it has itself seen the same record for `seconds`: it compares no times of other machines. A holder
whose renewal has not succeeded for two thirds of `seconds` is no leader any more, before anybody else can be. What it
was about to write then is given up: see `WhileLeading`.
"""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pcmoe_operator.cluster import Cluster, ClusterError, Object, Requests
from pcmoe_operator.times import moment

log = logging.getLogger(__name__)

GIVEN_BACK_SECONDS = 1
"""As client-go says it: nobody holds the record, and nobody need wait."""
KEPT = ("resourceVersion", "uid", "labels", "annotations")
"""What a renewal leaves as it is, of a record's metadata."""


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """The lease `name` in `namespace`, for `identity`, which no other process may have."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        identity: str,
        seconds: float,
        clock: Callable[[], float] = _now,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self.identity = identity
        self._seconds = seconds
        self._clock = clock
        self._seen: tuple[str, float] | None = None
        """The record last seen (its resourceVersion), and when it was seen first."""
        self._held: dict[str, Any] | None = None
        self._renewed = 0.0
        self._terms: set[asyncio.Timeout] = set()
        """Of everything that ends with the leadership."""

    @property
    def leading(self) -> bool:
        """Whether this process may act now."""
        return self._left > 0

    @property
    def _left(self) -> float:
        """Seconds for which this process leads without another renewal; none if it doesn't."""
        return 0.0 if self._held is None else self._renewed + self._seconds * 2 / 3 - self._clock()

    async def acquire(self) -> None:
        """Wait until this process is the leader."""
        while not await self._try(self._seconds):
            await asyncio.sleep(self._seconds / 3 * random.uniform(0.8, 1.2))

    async def hold(self) -> None:
        """Renew until that fails for too long; returns as soon as this process leads no more."""
        pause = self._seconds / 5
        while self.leading:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._left):
                    await asyncio.sleep(pause)
                    # A renewal that hangs leaves time for another one, on another connection.
                    renewed = await self._try(self._left / 2)
                    pause = self._seconds / (5 if renewed else 15)
        log.error("the lease %s/%s is lost", self._namespace, self._name)
        self._held = None

    @contextlib.asynccontextmanager
    async def term(self) -> AsyncIterator[None]:
        """What is in here is cancelled once this process leads no more, also if it slept meanwhile; `TimeoutError`."""
        async with asyncio.timeout(max(0.0, self._left)) as term:
            self._terms.add(term)
            try:
                yield
            finally:
                self._terms.discard(term)

    async def release(self) -> None:
        """Let the next one have it at once."""
        held = self._held if self.leading else None
        self._held = None
        if held is None:
            return
        try:
            try:
                await self._cluster.replace(_given_back(held))
            except ClusterError as error:
                if error.status != 409:
                    raise
                # The end came while a renewal was on its way, and that one has arrived.
                found = await self._cluster.read(
                    held["apiVersion"], held["kind"], self._namespace, self._name
                )
                if found is not None and found["spec"].get("holderIdentity") == self.identity:
                    await self._cluster.replace(_given_back(found))
        except ClusterError as error:
            log.warning("the lease could not be released: %s", error)

    async def _try(self, within: float) -> bool:
        """One attempt to get or renew it; every failure counts as not having it."""
        began = self._clock()
        try:
            async with asyncio.timeout(within):
                record = await self._written()
        except (ClusterError, TimeoutError) as error:
            log.warning("the lease could not be renewed: %s", str(error) or f"no answer in {within:.1f} s")
            return False
        if record is None:
            self._held = None
            return False
        self._held, self._renewed = record, began
        end = asyncio.get_running_loop().time() + self._left
        for term in self._terms:
            if not term.expired():
                term.reschedule(end)
        return True

    async def _written(self) -> dict[str, Any] | None:
        """The record with us as its holder, or None while it is another's."""
        if self._held is not None:
            with contextlib.suppress(ClusterError):  # somebody has written there, or our last answer was lost
                return await self._cluster.replace(self._record(self._held["metadata"], self._held["spec"]))
        found = await self._cluster.read("coordination.k8s.io/v1", "Lease", self._namespace, self._name)
        spec = (found or {}).get("spec") or {}
        if not self._free(spec) and not self._expired("" if found is None else _version(found), spec):
            return None
        if found is None:
            return await self._cluster.create(self._record({}, {}))
        return await self._cluster.replace(self._record(found["metadata"], spec))

    def _free(self, spec: Mapping[str, Any]) -> bool:
        """Whether nobody else can hold it. Where we knew of a holder and the record has none, somebody may have deleted
        or emptied it, and the holder not have heard of that yet.
        """
        holder = spec.get("holderIdentity") or ""
        given_back = spec.get("leaseDurationSeconds") == GIVEN_BACK_SECONDS
        ours = self._held is not None
        return holder == self.identity or (holder == "" and (given_back or ours or self._seen is None))

    def _expired(self, version: str, spec: Mapping[str, Any]) -> bool:
        """Whether the same record has been seen for as long as its holder may go without renewing it."""
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, self._clock())
            return False
        return self._clock() - self._seen[1] >= float(spec.get("leaseDurationSeconds") or self._seconds)

    def _record(self, metadata: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
        now = moment(datetime.now(UTC), "microseconds")
        # With the labels and annotations by which Helm knows it as its own, and takes it away again.
        kept = {key: metadata[key] for key in KEPT if key in metadata}
        ours = before.get("holderIdentity") == self.identity
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": self._namespace, "name": self._name, **kept},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": math.ceil(self._seconds),
                "acquireTime": before.get("acquireTime", now) if ours else now,
                "renewTime": now,
                "leaseTransitions": int(before.get("leaseTransitions") or 0) + (bool(before) and not ours),
            },
        }


def _version(record: Mapping[str, Any]) -> str:
    return str(record["metadata"]["resourceVersion"])


def _given_back(record: dict[str, Any]) -> dict[str, Any]:
    changes = {"holderIdentity": "", "leaseDurationSeconds": GIVEN_BACK_SECONDS}
    return record | {"spec": record["spec"] | changes}


class WhileLeading:
    """Requests that write only while this process leads. One that waits when that ends is not sent any more."""

    def __init__(self, requests: Requests, lease: Lease) -> None:
        self._requests = requests
        self._lease = lease

    async def __call__(
        self, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str
    ) -> Object:
        """One request; reading is always allowed."""
        if method == "GET":
            return await self._requests(method, path, query, body, content_type)
        try:
            async with self._lease.term():
                if not self._lease.leading:
                    raise TimeoutError
                return await self._requests(method, path, query, body, content_type)
        except TimeoutError:
            raise ClusterError(f"{method} {path}", 0, "this process leads no more") from None
