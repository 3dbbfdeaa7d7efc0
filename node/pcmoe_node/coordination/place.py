"""The seam between a node and the rest of the consortium: a seat at the coordinator's table, a transport per view."""

from collections.abc import Callable, Mapping
from typing import Protocol

from pcmoe_node.coordination.seat import Seat
from pcmoe_node.exchange.base import Transport
from pcmoe_node.protocol.membership import Member, View


class Place(Protocol):
    """`session.TlsPlace` between machines, `table.LocalPlace` within a process."""

    incarnation: str
    """128 random bits in hex, of this process alone."""

    def sit_down(self, member: Callable[[str], Member]) -> Seat:
        """Begin to look for the coordinator; `member` makes the node's mind from its incarnation."""

    def transport(self, view: View) -> Transport:
        """What carries messages within a view; each view gets a new one."""

    def progress(self, phase: str) -> None:
        """What this node does, for people who look at the coordinator."""

    def refused(self) -> Mapping[str, int]:
        """Connections turned down by this process, by reason; any thread may ask."""

    def certificate_ends(self) -> float | None:
        """When the certificate in use expires, Unix seconds; None: there is none. Any thread may ask."""

    def close(self) -> None:
        """Say the last words to the coordinator and leave."""
