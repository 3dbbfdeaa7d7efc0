"""A coordinator and its nodes within one process, without a network: the reference, and what tests of nodes use."""

import threading
from collections.abc import Callable, Sequence
from functools import partial

from pcmoe_node.config import NodeConfig
from pcmoe_node.coordination.seat import Seat
from pcmoe_node.exchange.base import Transport
from pcmoe_node.exchange.local import Hook, LocalNetwork
from pcmoe_node.protocol.coordinator import Coordinator, Tell
from pcmoe_node.protocol.membership import Member, View


class LocalTable:
    """Coordinator and network of N nodes. `place(i)` is what participant i is given."""

    def __init__(self, configs: Sequence[NodeConfig], hook: Hook | None = None) -> None:
        self._configs = tuple(configs)
        self.names = tuple(config.participant for config in configs)
        self.coordinator = Coordinator(self.names)
        self._hook = hook
        self._lock = threading.RLock()
        self._seats: dict[tuple[int, str], Seat] = {}
        self._networks: dict[int, LocalNetwork] = {}
        self._started = 0

    def place(self, index: int) -> "LocalPlace":
        """One participant's place, in a new incarnation."""
        with self._lock:
            self._started += 1
            return LocalPlace(self, index, f"{self._started:032x}")

    def network(self, view: View) -> LocalNetwork:
        """The network of a view, the same for all its members."""
        with self._lock:
            if view.number not in self._networks:
                self._networks[view.number] = LocalNetwork(self._configs, self._hook)
            return self._networks[view.number]

    def sit(self, index: int, incarnation: str, seat: Seat) -> None:
        """A node is here."""
        with self._lock:
            self._seats[index, incarnation] = seat
            self.coordinator.connected(index, incarnation)

    def hear(self, index: int, incarnation: str) -> None:
        """A node has something new to report."""
        with self._lock:
            seat = self._seats.get((index, incarnation))
            if seat is not None:
                self._tell(self.coordinator.report(index, incarnation, seat.report()))

    def rise(self, index: int, incarnation: str) -> None:
        """A node is gone."""
        with self._lock:
            if self._seats.pop((index, incarnation), None) is not None:
                self._tell(self.coordinator.disconnected(index, incarnation))

    def _tell(self, tells: Sequence[Tell]) -> None:
        for tell in tells:
            seat = self._seats.get((tell.member, tell.incarnation))
            if seat is not None:
                seat.notice(tell.notice)


class LocalPlace:
    """One participant's network and coordinator, in process; see `base.Place`."""

    def __init__(self, table: LocalTable, index: int, incarnation: str) -> None:
        self._table = table
        self._index = index
        self.incarnation = incarnation

    def sit_down(self, member: Callable[[str], Member]) -> Seat:
        """Be at the coordinator's table from now on."""
        changed = partial(self._table.hear, self._index, self.incarnation)
        seat = Seat(member(self.incarnation), self._table.names, changed)
        seat.trouble = ""
        self._table.sit(self._index, self.incarnation, seat)
        changed()
        return seat

    def transport(self, view: View) -> Transport:
        """What carries messages within a view."""
        return self._table.network(view).transport(self._index)

    def progress(self, phase: str) -> None:
        """Nobody asks."""

    def refused(self) -> dict[str, int]:
        """There is no door."""
        return {}

    def certificate_ends(self) -> float | None:
        """Nobody needs one."""
        return None

    def close(self) -> None:
        """Leave the table."""
        self._table.rise(self._index, self.incarnation)
