"""A link: what must arrive once and in order at a peer, whatever connection carries it.

A pair of nodes has one link for control and some for tensors. Each has at most one connection at a time. When that
breaks, or is replaced because a certificate was renewed, the next one goes on with the first message that the peer has
not taken in full: every message stays here, with its memory, until the peer has said so.
"""

from collections import deque

from pcmoe_node.errors import ProtocolError
from pcmoe_node.exchange.base import UNNUMBERED, Message
from pcmoe_node.exchange.wire import Stamp


class Link:
    """Any thread may `queue`; everything else is the I/O thread's."""

    def __init__(self, number: int, view: int = 0) -> None:
        """`number` is the link's among those of the pair; `view` goes into every frame."""
        self.number = number
        self.delivered = 0
        """Messages of the peer taken in full."""
        self._view = view
        self._urgent: deque[Message] = deque()
        self._unsent: deque[Message] = deque()
        self._unacknowledged: deque[Message] = deque()
        self._writing: tuple[Message, int] | None = None
        """The message under way on the present connection, and its number."""
        self._sent = 0
        """Number of the last message begun on the present connection."""
        self._written = 0
        """Highest number ever written in full: no peer can have taken a later one."""
        self._acknowledged = 0
        self._told = 0
        """`delivered` as the peer was last told."""

    # Out

    def queue(self, message: Message) -> None:
        """Append a message; the carrier's own kinds go before all others."""
        (self._urgent if message.header.kind in UNNUMBERED else self._unsent).append(message)

    def pull(self) -> tuple[Message, Stamp] | None:
        """The next message to write, and what is stamped on it."""
        if self._urgent:
            message, sequence = self._urgent.popleft(), 0
        elif self._unsent:
            message = self._unsent.popleft()
            self._sent += 1
            sequence = self._sent
            self._unacknowledged.append(message)
        else:
            return None
        self._writing, self._told = (message, sequence), self.delivered
        return message, Stamp(self._view, sequence, self.delivered)

    def wrote(self) -> None:
        """The message last pulled is written in full."""
        if self._writing is not None:
            self._written = max(self._written, self._writing[1])
            self._put_down()

    def acknowledge(self, count: int) -> None:
        """The peer has taken `count` messages in full: give their memory back."""
        if count > self._written:
            raise ProtocolError(f"acknowledged {count} messages of {self._written}")
        while self._acknowledged < count:
            self._acknowledged += 1
            if self._unacknowledged:
                message = self._unacknowledged.popleft()
            else:  # it arrived over an earlier connection, and was about to be sent again
                message = self._unsent.popleft()
                self._sent += 1
            if not self._in_hand(message):
                _release(message)

    def rewind(self) -> None:
        """The connection is gone: what the peer has not acknowledged is sent again over the next one."""
        self._put_down()
        self._unsent.extendleft(reversed(self._unacknowledged))
        self._sent -= len(self._unacknowledged)
        self._unacknowledged.clear()
        self._urgent.clear()

    # In

    def accept(self, sequence: int) -> bool:
        """Whether a numbered message that is complete is new; an earlier one was sent again in vain."""
        if sequence <= self.delivered:
            return False
        self.delivered = sequence
        return True

    def expects(self, sequence: int) -> bool:
        """Whether a message of this number may come now."""
        return 1 <= sequence <= self.delivered + 1

    @property
    def owes_acknowledgement(self) -> bool:
        """The peer has not been told of everything that was taken."""
        return self._told < self.delivered

    # State

    @property
    def idle(self) -> bool:
        """Everything queued has been written and taken."""
        return not (self._urgent or self._unsent or self._unacknowledged) and self._writing is None

    @property
    def pending(self) -> list[Message]:
        """What the peer has not taken, as far as is known."""
        return [*self._unacknowledged, *self._unsent]

    def drop(self) -> None:
        """Forget everything but the message being written, whose end the peer needs to read what follows."""
        for queue in (self._urgent, self._unsent, self._unacknowledged):
            while queue:
                message = queue.popleft()
                if not self._in_hand(message):
                    _release(message)
        self._acknowledged = self._sent = max(self._sent, self._written)

    def close(self) -> None:
        """Give everything back; nothing is being written any more."""
        self.drop()
        self._put_down()

    def _in_hand(self, message: Message) -> bool:
        """Whether its memory is being written from: then it is released when that is over."""
        return self._writing is not None and self._writing[0] is message

    def _put_down(self) -> None:
        """Writing has ended: give the memory back unless the peer may need it again."""
        writing, self._writing = self._writing, None
        if writing is not None and writing[1] <= self._acknowledged:
            _release(writing[0])


def _release(message: Message) -> None:
    if message.payload is not None:
        message.payload.release()
