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
    """Seconds by what they were spent on, since the last `take`.

    It always counts under exactly one name, the innermost, so that nothing is counted twice and all of it together is
    the time that passed. What has no name is `other`. Of a node's threads only the one that has the turn may use it.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._names = ["other"]
        self._since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside under `name`, less what is counted further inside."""
        self._charge()
        self._names.append(name)
        try:
            yield
        finally:
            self._charge()
            self._names.pop()

    def turn(self, name: str) -> None:
        """From now on the innermost phase has this name."""
        self._charge()
        self._names[-1] = name

    def take(self) -> dict[str, float]:
        """The seconds counted, and start again."""
        self._charge()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _charge(self) -> None:
        now, name = time.perf_counter(), self._names[-1]
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now


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
