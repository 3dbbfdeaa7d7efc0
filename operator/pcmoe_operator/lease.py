"""One leader at a time, by a Lease: clock differences between machines don't matter, a paused leader finds out.

A holder renews every third of `seconds`, counted on its own monotonic clock. Whoever wants the lease waits until it has
itself seen the same record for `seconds`: it compares no times of other machines. A holder whose renewal has not
succeeded for two thirds of `seconds` is no leader any more, before anybody else can be: it must stop at once.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pcmoe_operator.cluster import Cluster, ClusterError

log = logging.getLogger(__name__)


class Lease:
    """The lease `name` in `namespace`, for `identity`."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        identity: str,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seconds = seconds
        self._clock = clock
        self._seen: tuple[str, float] | None = None
        """The record last seen (its resourceVersion), and when it was seen first."""
        self._held: dict[str, Any] | None = None
        self._renewed = 0.0

    @property
    def leading(self) -> bool:
        """Whether this process may act now."""
        return self._held is not None and self._clock() - self._renewed < self._seconds * 2 / 3

    async def acquire(self) -> None:
        """Wait until this process is the leader."""
        while not await self._try():
            await asyncio.sleep(self._seconds / 3 * random.uniform(0.8, 1.2))

    async def hold(self) -> None:
        """Renew until that fails for too long; returns when this process leads no more."""
        while self.leading:
            await asyncio.sleep(self._seconds / 3)
            if not await self._try() and not self.leading:
                break
        log.error("the lease %s/%s is lost", self._namespace, self._name)
        self._held = None

    async def release(self) -> None:
        """Let the next one have it at once."""
        held, self._held = self._held, None
        if held is None:
            return
        held["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            await self._cluster.replace(held)
        except ClusterError as error:
            log.warning("the lease could not be released: %s", error)

    async def _try(self) -> bool:
        """One attempt to get or renew it; every failure counts as not having it."""
        began = self._clock()
        try:
            record = await self._written()
        except ClusterError as error:
            log.warning("the lease could not be renewed: %s", error)
            return False
        if record is None:
            self._held = None
            return False
        self._held, self._renewed = record, began
        return True

    async def _written(self) -> dict[str, Any] | None:
        """The record with us as its holder, or None while it is another's."""
        found = await self._cluster.read("coordination.k8s.io/v1", "Lease", self._namespace, self._name)
        if found is None:
            return await self._cluster.create(self._record({}, 0))
        spec = found.get("spec", {})
        holder = spec.get("holderIdentity") or ""
        if holder not in ("", self._identity) and not self._expired(found):
            return None
        changes = int(spec.get("leaseTransitions") or 0) + (holder != self._identity)
        return await self._cluster.replace(self._record(found["metadata"], changes))

    def _expired(self, found: dict[str, Any]) -> bool:
        """Whether the same record has been seen for as long as its holder may go without renewing it."""
        version = found["metadata"]["resourceVersion"]
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, self._clock())
            return False
        seconds = float(found["spec"].get("leaseDurationSeconds") or self._seconds)
        return self._clock() - self._seen[1] >= seconds

    def _record(self, metadata: dict[str, Any], transitions: int) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        kept = {key: metadata[key] for key in ("resourceVersion", "uid") if key in metadata}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": self._namespace, "name": self._name, **kept},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": int(self._seconds),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }
