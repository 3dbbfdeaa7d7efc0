"""Free ports of the loopback interface."""

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack

LOOPBACK = "127.0.0.1"
FIRST, LAST = 20000, 32000
"""Below the range that outgoing connections are numbered from: none takes a port before its node does."""


def free_ports(count: int) -> list[int]:
    """`count` different ports that nobody listens on now; all are held until the last is found."""
    with ExitStack() as held:
        return [_hold(held) for _ in range(count)]


def _hold(held: ExitStack) -> int:
    for port in _candidates():
        probe = socket.socket()
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            probe.close()
            continue
        held.callback(probe.close)
        return int(probe.getsockname()[1])
    raise OSError("no free port on the loopback interface")


def _candidates() -> Iterator[int]:
    yield from random.sample(range(FIRST, LAST), 200)
    yield 0  # whatever the system gives
