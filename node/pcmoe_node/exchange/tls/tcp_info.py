"""What the kernel knows of a TCP connection, where it is Linux."""

import socket
import struct
import sys
from collections.abc import Iterable

_RTT = struct.Struct("=68xI")
"""`tcpi_rtt` of `struct tcp_info` (linux/tcp.h), microseconds: after 8 bytes and 15 numbers of 32 bits."""


def round_trip(sock: socket.socket) -> float | None:
    """The smoothed round-trip time of a connection in seconds; None where the kernel doesn't tell, or not yet."""
    if sys.platform != "linux":
        return None
    try:
        # The plain socket's method also for TLS: the TLS object has no say in it.
        told = socket.socket.getsockopt(sock, socket.IPPROTO_TCP, socket.TCP_INFO, _RTT.size)
        (microseconds,) = _RTT.unpack(told)
    except (OSError, struct.error):
        return None
    return microseconds / 1e6 if microseconds else None


def least_round_trip(socks: Iterable[socket.socket]) -> float | None:
    """Of several connections with one peer the least: the others wait behind their own payloads."""
    return min((trip for sock in socks if (trip := round_trip(sock)) is not None), default=None)
