"""A node's place at the coordinator's table: the member's mind, shared by the node and by what carries its words.

The node's own thread says what it did and waits for views; the carrier's thread brings notices and sends reports.
While the node is inside a view it waits at its transport, so that is where it is interrupted.
"""

import threading
import time
from collections.abc import Callable, Sequence

from pcmoe_node.coordination.words import error_of
from pcmoe_node.errors import NodeError, PeerLostError
from pcmoe_node.protocol.membership import (
    Accept,
    Commit,
    Fail,
    Failure,
    Finish,
    Leave,
    Member,
    Notice,
    Order,
    Report,
    View,
)

Interrupt = Callable[[NodeError | None], None]
"""Ends what a transport waits for; see `Transport.interrupt`."""
GLANCE_SECONDS = 1.0


class Seat:
    """Any thread may call anything. `changed` is called, outside all locks, when there is a new report to send."""

    def __init__(self, member: Member, names: Sequence[str], changed: Callable[[], None]) -> None:
        self._member = member
        self._names = tuple(names)
        self._changed = changed
        self._condition = threading.Condition()
        self._offer: View | None = None
        self._leave: NodeError | None = None
        self._failure: NodeError | None = None
        self._finished = False
        self._interrupt: Interrupt | None = None
        self.check_owner: Callable[[], None] = _nobody_else
        """Raises if another process has taken this one's place; asked whenever the coordinator is met anew."""
        self.trouble = "it was not reached yet"
        """Why the coordinator is not at hand, for people; empty while it is."""

    # The node's thread

    @property
    def committed(self) -> int:
        """The newest round known to be committed."""
        return self._member.committed

    @property
    def view(self) -> View | None:
        """The view the node is in."""
        return self._member.view

    def loaded(self, rounds: tuple[int, ...]) -> None:
        """The node can enter a view; these rounds it holds."""
        with self._condition:
            self._member.stored(rounds)
            self._member.loaded()
        self._changed()

    def await_view(self, deadline: float, rule: str, tell: Callable[[str], None]) -> View | None:
        """The next view to enter; None: the run is over, and nobody needs this node.

        `tell` hears now and then what is waited for. At `deadline` (monotonic) a `PeerLostError` says that there was
        no view `rule` ("within 8 s"), and who is missing.
        """
        with self._condition:
            while True:
                if self._failure is not None:
                    raise self._failure
                if self._finished:
                    return None
                if self._offer is not None:
                    view, self._offer = self._offer, None
                    return view
                left = deadline - time.monotonic()
                if left <= 0:
                    raise PeerLostError(f"no view {rule}: {self.absent()}")
                tell(self.absent())
                self._condition.wait(min(left, GLANCE_SECONDS))

    def entered(self, rounds: tuple[int, ...]) -> None:
        """The view is entered: its number is on disk, later rounds are gone."""
        with self._condition:
            self._member.entered(rounds)
        self._changed()

    def inside(self, interrupt: Interrupt | None) -> None:
        """From now on the node waits where `interrupt` reaches it; None: no more."""
        with self._condition:
            self._interrupt = interrupt
            error = self._failure or self._leave
        if interrupt is not None and error is not None:
            interrupt(error)

    def stored(self, rounds: tuple[int, ...]) -> None:
        """A round is on disk; these are there now."""
        with self._condition:
            self._member.stored(rounds)
        self._changed()

    def commit(self, round_number: int) -> None:
        """A peer vouches for it that everybody holds this round."""
        with self._condition:
            self._member.committed = max(self._member.committed, round_number)

    def left(self, reason: str) -> None:
        """The view is left."""
        with self._condition:
            self._member.left(reason)
            self._offer = self._leave = self._interrupt = None
        self._changed()

    def finish(self) -> None:
        """Everybody has taken leave of everybody."""
        with self._condition:
            self._member.finish()
        self._changed()

    def fail(self, failure: Failure) -> None:
        """This node ends, and so does the run for all."""
        with self._condition:
            self._member.fail(failure)
        self._changed()

    def absent(self) -> str:
        """Who keeps a view from forming, for people."""
        if self.trouble:
            return f"the coordinator can't be asked: {self.trouble}"
        missing = self._member.missing
        return "; ".join(f"{self._names[who]} {what}" for who, what in missing) or "the coordinator's word"

    # The carrier's thread

    def report(self) -> Report:
        """What to send."""
        with self._condition:
            return self._member.report()

    def notice(self, notice: Notice) -> None:
        """The coordinator said something."""
        with self._condition:
            before = self._member.missing
            orders = self._member.notice(notice)
            errors = [self._carry_out(order) for order in orders]
            interrupt = self._interrupt
            if orders or before != self._member.missing:
                self._condition.notify_all()
        if interrupt is not None and orders:
            interrupt(errors[0])

    def still_sits(self) -> bool:
        """Whether this is still its participant's process; where it isn't, the node ends."""
        try:
            self.check_owner()
        except NodeError as error:
            with self._condition:
                self._failure, interrupt = error, self._interrupt
                self._condition.notify_all()
            if interrupt is not None:
                interrupt(error)
            return False
        return True

    def refuse(self, error: NodeError) -> None:
        """The coordinator can't be worked with; a node that is in a view needs it only later."""
        with self._condition:
            self.trouble = str(error)
            if self._member.view is None:
                self._failure = self._failure or error
            self._condition.notify_all()

    # Inside

    def _carry_out(self, order: Order) -> NodeError | None:
        """What a node inside a view is interrupted with; None: it only has a look."""
        match order:
            case Accept():
                self._offer, self._leave = order.view, None
            case Leave():
                number = self._member.number
                self._leave = PeerLostError(f"view {number} is over: {order.reason}")
                return self._leave
            case Finish():
                self._finished = True
            case Fail():
                self._failure = error_of(order.failure, self._names, self._member.me)
                return self._failure
            case Commit():
                pass
        return None


def _nobody_else() -> None:
    """Nobody can take this place."""
