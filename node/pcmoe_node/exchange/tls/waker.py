"""A way to wake a thread that sleeps in a selector."""

import socket
from contextlib import suppress


class Waker:
    """A socket pair: `reader` goes into the selector, any thread may call `wake`."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)

    def wake(self) -> None:
        """Make the selector return. Does nothing when it is being woken already, or is closed."""
        with suppress(OSError):
            self._writer.send(b"\0")

    def drain(self) -> None:
        """Forget the wake-ups so far."""
        with suppress(BlockingIOError):
            while len(self.reader.recv(4096)) == 4096:
                pass

    def close(self) -> None:
        """Close both ends."""
        self.reader.close()
        self._writer.close()
