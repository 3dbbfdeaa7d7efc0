"""Connections that are turned down are counted by reason, at a node's door and at the coordinator's."""

import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from tests.exchange.rigs import changed, coordinating, node_configs, open_rig, view_of, wait_until
from tests.exchange.strangers import Stranger

from pcmoe_node.coordination.session import TlsPlace, hello_of
from pcmoe_node.exchange.base import Kind
from pcmoe_node.exchange.tls.refusals import REASONS
from pcmoe_node.exchange.tls.transport import TlsTransport


def knock(endpoint: str | None, words: bytes = b"GET / HTTP/1.1\r\n\r\n") -> None:
    """Say something that is no TLS, and wait until the door is shut."""
    assert endpoint is not None
    host, _, port = endpoint.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(words)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass


def counted(counts: Callable[[], Mapping[str, int]], **expected: int) -> None:
    """Wait until exactly these reasons were counted."""
    wanted = dict.fromkeys(REASONS, 0) | expected
    wait_until(lambda: dict(counts()) == wanted)


def test_whoever_speaks_no_tls_is_counted_at_a_nodes_door() -> None:
    with open_rig(2) as rig:
        transport: TlsTransport = rig[1]
        for _ in range(3):
            knock(rig.configs[1].identity.listen)
        counted(transport._refusals.counts, handshake=3)


def test_whoever_speaks_no_tls_is_counted_at_the_coordinators_door(tmp_path: Path) -> None:
    configs = node_configs(2, tmp_path)
    with coordinating(configs) as server:
        knock(configs[0].coordinator.endpoint)
        counted(server.page.refusals.counts, handshake=1)


def test_the_count_of_a_node_goes_on_from_view_to_view(tmp_path: Path) -> None:
    configs = node_configs(1, tmp_path)
    place = TlsPlace(configs[0])
    for number in (1, 2):
        transport = place.transport(view_of(configs, number))
        transport.open(10.0)
        knock(configs[0].identity.listen)
        counted(place.refused, handshake=number)
        transport.close()
    place.close()


def test_whoever_is_of_another_consortium_is_counted_by_that_reason(tmp_path: Path) -> None:
    configs = node_configs(2, tmp_path)
    with coordinating(configs) as server:
        door = changed(configs[0], identity={"listen": configs[0].coordinator.endpoint})
        with Stranger(configs[0], door) as stranger:
            stranger.hello = replace(hello_of(configs[0], "5" * 32), agreement_id="another")
            assert stranger.secure().introduce()[0] is Kind.REFUSED
        counted(server.page.refusals.counts, identity=1)
