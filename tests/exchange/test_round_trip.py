"""Round trips as the kernel has them, and how peers are reached, on real sockets."""

import socket
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.exchange.rigs import open_rig, wait_until

from pcmoe_node.exchange.tls.tcp_info import least_round_trip, round_trip


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection on loopback over which something went both ways."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        one = socket.create_connection(listener.getsockname(), timeout=5)
        other, _ = listener.accept()
    other.settimeout(5)
    with one, other:
        for sender, receiver in ((one, other), (other, one)):
            sender.sendall(b"x")
            assert receiver.recv(1) == b"x"
        yield one, other


def test_a_connection_on_loopback_has_a_round_trip_of_less_than_a_second(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    for sock in pair:
        trip = round_trip(sock)
        assert trip is not None and 0.0 < trip < 1.0


def test_the_figure_is_the_kernels_own(pair: tuple[socket.socket, socket.socket]) -> None:
    """Read a second time as numbers of 32 bits; another of them, the segment size, can be asked for by itself."""
    trip = round_trip(pair[0])
    info = pair[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    words = memoryview(info[8:]).cast("I")
    assert trip is not None and words[15] == round(trip * 1e6)
    assert words[2] == pair[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)


def test_a_closed_socket_a_plain_file_and_another_system_have_none(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair[0].close()
    assert round_trip(pair[0]) is None
    left, right = socket.socketpair()
    with left, right:
        assert round_trip(left) is None
    monkeypatch.setattr("pcmoe_node.exchange.tls.tcp_info.sys.platform", "darwin")
    assert round_trip(pair[1]) is None


def test_of_several_connections_the_least_counts(pair: tuple[socket.socket, socket.socket]) -> None:
    trips = [trip for sock in pair if (trip := round_trip(sock)) is not None]
    assert least_round_trip(pair) == min(trips)
    assert least_round_trip([]) is None


def test_peers_over_tls_are_up_with_a_round_trip_and_down_once_they_are_gone() -> None:
    assert sys.platform == "linux"
    with open_rig(3) as rig:
        wait_until(lambda: all(reach.round_trip is not None for reach in rig[0].reach().values()))
        assert {peer: reach.up for peer, reach in rig[0].reach().items()} == {1: True, 2: True}
        rig[2].close()
        wait_until(lambda: not rig[0].reach()[2].up)
        gone, there = rig[0].reach()[2], rig[0].reach()[1]
        assert gone.round_trip is None and there.up


def test_peers_of_one_process_are_up_without_a_round_trip() -> None:
    with open_rig(2, "local") as rig:
        assert {peer: (r.up, r.round_trip) for peer, r in rig[0].reach().items()} == {1: (True, None)}
        rig[1].close()
        assert not rig[0].reach()[1].up
