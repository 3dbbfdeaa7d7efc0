"""Seconds: where they went, and how long a wait may last. Slow but moving is never an error."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pcmoe_node.errors import PeerLostError
from pcmoe_node.exchange.base import Transport
from pcmoe_node.protocol.waits import cause, graph

log = logging.getLogger("pcmoe")

SLOW_PHASES = frozenset({"", "STARTING", "LOADING", "CONNECTING", "CHECKPOINT", "COMMITTING"})
"""Phases without steps of their own to count: they may take as long as a return may."""


class Clock:
    """Seconds per phase since the last `take`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside under `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The seconds counted, and start again."""
        seconds, self.seconds = self.seconds, {}
        return seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """The progress deadline: a wait ends when whoever it leads to has stood still for too long."""

    me: int
    names: tuple[str, ...]
    progress_timeout: float
    rejoin_timeout: float

    def check(self, transport: Transport, waited_for: frozenset[int], since: float, where: str) -> None:
        """Raise a `PeerLostError` that names who stands still. `since`: when the wait began (monotonic)."""
        waited = time.monotonic() - since
        if waited < self.progress_timeout:
            return
        pulses = transport.pulses()
        if not waited_for:
            if waited >= self.rejoin_timeout:
                raise PeerLostError(f"{where}: the coordinator gave no word for {self.rejoin_timeout:g} s")
            return
        waiting = {peer: pulse.waiting for peer, pulse in pulses.items()}
        found = cause(self.me, waited_for, waiting)
        roots = {peer: pulses[peer] for peer in found.roots if peer in pulses}
        if any(min(waited, pulse.still_seconds) < self.limit(pulse.phase) for pulse in roots.values()):
            return
        edges = graph(self.names, {**waiting, self.me: waited_for})
        log.error("%s: nothing moves; who waits for whom: %s", where, edges)
        who = ", ".join(f"{self.names[peer]} (in {pulse.phase})" for peer, pulse in roots.items())
        what = "wait for each other in a circle" if found.circle else "made no progress"
        raise PeerLostError(
            f"{who or 'nobody'} {what} for {self.progress_timeout:g} s; {where}; waits: {edges}"
        )

    def limit(self, phase: str) -> float:
        """Seconds for which nothing need move in a phase."""
        return self.rejoin_timeout if phase in SLOW_PHASES else self.progress_timeout
