"""The signals that ask a run to stop."""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """A signal that arrived, and a pipe that wakes whoever waits for it."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """The first that arrived."""
        self.count = 0
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The handler of each of them."""
        self.signal = self.signal or number
        self.count += 1
        os.write(self._writer, b"!")

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or at once when a signal arrives."""
        if select.select([self._reader], [], [], seconds)[0]:
            os.read(self._reader, 64)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._reader)
        os.close(self._writer)


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Catch the signals that ask to stop, for as long as the run lasts. Main thread only."""
    request = StopRequest()
    before = {number: signal.signal(number, request.handle) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        request.close()
