"""Peers that send what they must not, or nothing: the right error, naming the peer, in time."""

import gc
import socket
import ssl
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.exchange.rigs import message, node_configs, open_rig
from tests.exchange.strangers import Opening, Stranger, join_as
from tests.faults.proxy import FaultProxy

from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import DivergedError, IdentityError, NodeError, PeerLostError, ProtocolError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Header, Kind, WireDtype
from pcmoe_node.exchange.tls.wrapping import wrapped

SHORT = {"peer_timeout_seconds": 1, "connections": 1}
PATIENT = {"peer_timeout_seconds": 8, "connections": 1}


class Siege:
    """berlin, with a stranger welcomed as amsterdam on both connections."""

    def __init__(self, configs: list[NodeConfig], stack: ExitStack) -> None:
        opening = stack.enter_context(Opening(configs[1], 10.0))
        self.control, self.data = join_as(lambda: Stranger(configs[0], configs[1]))
        stack.callback(self.data.hang_up)
        stack.callback(self.control.hang_up)
        opening.join()
        assert opening.error is None
        self.berlin: Any = opening.transport

    def failure(self, deadline: float = 5.0) -> NodeError:
        """What berlin is told of amsterdam; messages before it are dropped."""
        end = time.monotonic() + deadline
        while (left := end - time.monotonic()) > 0:
            arrival = self.berlin.receive(left)
            if arrival is not None and arrival.failure is not None:
                assert isinstance(arrival.failure, NodeError)
                return arrival.failure
        raise AssertionError("no failure arrived")


@pytest.fixture
def siege(tmp_path: Path) -> Iterator[Siege]:
    """A besieged participant that is patient with silence."""
    with ExitStack() as stack:
        yield Siege(node_configs(2, tmp_path, transport=PATIENT), stack)


@pytest.mark.parametrize(
    ("fields", "raw", "rule"),
    [
        ({"layer": 2}, {}, "layer 2: must be one with experts at berlin"),
        ({"layer": 77}, {}, "layer 77: must be one with experts at berlin"),
        ({"rows": 65, "slots": 65}, {}, "rows 65: must be from 0 to 64"),
        ({"rows": 4, "slots": 9}, {}, "slots 9: must be from 4 to 8"),
        ({"rows": 4, "slots": 3}, {}, "slots 3: must be from 4 to 8"),
        ({"micro_batch": 2}, {}, "micro_batch 2: must be from 0 to 1"),
        ({"step": 8}, {}, "step 8: must be from 0 to 7"),
        ({"stamp": {"view": 2}}, {}, "view 2: must be 1"),
        ({"stamp": {"sequence": 0}}, {}, "sequence 0: must be at most 1, from 1"),
        ({"stamp": {"sequence": 3}}, {}, "sequence 3: must be at most 1, from 1"),
        ({"stamp": {"acknowledged": 1}}, {}, "a wrong count: acknowledged 1 messages of 0"),
        ({}, {"dtype": WireDtype.BFLOAT16}, "dtype BFLOAT16: must be the agreed FLOAT32"),
        ({}, {"payload_length": 1 << 40}, f"payload_length {1 << 40}: must be 0"),
        ({}, {"pad_length": 1 << 40}, f"pad_length {1 << 40}: must be"),
        ({"rows": 4, "slots": 4}, {"payload_length": 16}, "payload_length 16: must be"),
        ({}, {"kind": Kind.HELLO}, "HELLO with kind HELLO: has no place between participants"),
        ({}, {"kind": Kind.FORWARD_REPLY, "layer": 2}, "layer 2: must be one with experts at amsterdam"),
    ],
)
def test_a_header_beyond_the_agreement_ends_the_run_before_anything_is_allocated(
    siege: Siege, fields: dict[str, Any], raw: dict[str, Any], rule: str
) -> None:
    made = siege.berlin._pool.created_bytes
    siege.data.sock.sendall(siege.data.frame(Kind.FORWARD, **fields, raw=raw)[: wire.HEADER_SIZE])
    failure = siege.failure()
    assert isinstance(failure, ProtocolError)
    assert str(failure).startswith("amsterdam sent ")
    assert rule in str(failure)
    assert siege.berlin._pool.created_bytes - made < 1 << 16
    kind, reason = siege.control.heard_abort()
    assert kind is ProtocolError
    assert reason == str(failure)


@pytest.mark.parametrize(
    ("position", "value", "rule"),
    [
        (0, 9, "protocol version is 9: must be 1"),
        (1, 99, "kind is 99: unknown"),
        (2, 7, "dtype is 7: unknown"),
        (3, 1, "flags are 1"),
    ],
)
def test_an_unknown_byte_in_a_header_is_refused(siege: Siege, position: int, value: int, rule: str) -> None:
    header = bytearray(siege.data.frame(Kind.FORWARD)[: wire.HEADER_SIZE])
    header[position] = value
    siege.data.sock.sendall(header)
    failure = siege.failure()
    assert isinstance(failure, ProtocolError)
    assert "amsterdam" in str(failure)
    assert rule in str(failure)


def test_extra_bytes_after_a_frame_are_refused(siege: Siege) -> None:
    siege.data.sock.sendall(siege.data.frame(Kind.FORWARD, rows=2, slots=2) + b"\xff" * wire.HEADER_SIZE)
    failure = siege.failure()
    assert isinstance(failure, ProtocolError)
    assert "amsterdam" in str(failure)


@pytest.mark.parametrize("control", [True, False], ids=["tensor on control", "control on data"])
def test_a_frame_on_the_wrong_connection_is_refused(siege: Siege, control: bool) -> None:
    sender = siege.control if control else siege.data
    sender.sock.sendall(sender.frame(Kind.FORWARD if control else Kind.DONE))
    failure = siege.failure()
    assert isinstance(failure, ProtocolError)
    assert "amsterdam sent" in str(failure)
    assert "wrong one" in str(failure)


def test_a_truncated_frame_ends_the_run_naming_the_peer(siege: Siege) -> None:
    frame = siege.data.frame(Kind.FORWARD, rows=9, slots=9)
    siege.data.sock.sendall(frame[: len(frame) // 2])
    siege.data.hang_up(politely=True)
    failure = siege.failure()
    assert isinstance(failure, ProtocolError)
    assert str(failure) == "amsterdam closed its connection in the middle of a frame"


def test_a_connection_that_breaks_and_does_not_come_back_is_a_lost_peer(tmp_path: Path) -> None:
    with ExitStack() as stack:
        siege = Siege(node_configs(2, tmp_path, transport=SHORT), stack)
        frame = siege.data.frame(Kind.FORWARD, rows=9, slots=9)
        siege.data.sock.sendall(frame[: len(frame) // 2])
        siege.data.hang_up()
        failure = siege.failure()
    assert isinstance(failure, PeerLostError)
    assert str(failure).startswith("amsterdam is lost: no byte for 1 s; its connection 1 ")


def test_the_reason_wins_over_the_connection_that_ends_before_it(siege: Siege) -> None:
    siege.data.hang_up()
    payload = wire.encode_abort(DivergedError("not finite"), 0)
    header = Header(kind=Kind.ABORT, payload_length=len(payload))
    siege.control.sock.sendall(wire.encode_header(header, wire.Stamp(view=1)) + payload)
    failure = siege.failure()
    assert isinstance(failure, DivergedError)
    assert str(failure) == "amsterdam ended the run: not finite"


def test_what_a_peer_says_reaches_the_log_short_and_printable(siege: Siege) -> None:
    reason = b"\x1b[2J\n\x00" + "é".encode() * 240
    payload = wire.ABORT.pack(143, 77, len(reason), reason)
    header = Header(kind=Kind.ABORT, payload_length=len(payload))
    siege.control.sock.sendall(wire.encode_header(header, wire.Stamp(view=1)) + payload)
    failure = siege.failure()
    assert isinstance(failure, PeerLostError)
    assert str(failure).isprintable()
    assert str(failure).startswith("amsterdam ended the run: \\x1b[2J\\n\\x00é")
    assert len(str(failure)) < 600


def test_a_silent_peer_is_lost_after_the_agreed_time(tmp_path: Path) -> None:
    with ExitStack() as stack:
        besieged = Siege(node_configs(2, tmp_path, transport=SHORT), stack)
        began = time.monotonic()
        failure = besieged.failure()
        assert isinstance(failure, PeerLostError)
        assert str(failure) == "amsterdam is lost: no byte for 1 s"
        assert 0.5 < time.monotonic() - began < 3.0


def test_a_network_that_goes_silent_ends_the_run_on_both_sides_in_time() -> None:
    with ExitStack() as stack:
        proxies: list[FaultProxy] = []

        def through(_dialer: int, _target: int, endpoint: str) -> str:
            proxies.append(stack.enter_context(FaultProxy(endpoint, 0.001)))
            return proxies[-1].endpoint

        rig = stack.enter_context(open_rig(2, reroute=through, transport=SHORT))
        assert rig[0].receive(2.0) is None, "beats go through, so nobody is lost"
        for proxy in proxies:
            proxy.freeze()
        began = time.monotonic()
        for transport, name in zip(rig, ("berlin", "amsterdam"), strict=True):
            failure = transport.receive(5.0).failure
            assert isinstance(failure, PeerLostError)
            assert str(failure) == f"{name} is lost: no byte for 1 s"
        assert time.monotonic() - began < 3.0


def test_a_network_that_breaks_and_stays_broken_ends_the_run_on_both_sides_in_time() -> None:
    with ExitStack() as stack:
        proxies: list[FaultProxy] = []

        def through(_dialer: int, _target: int, endpoint: str) -> str:
            proxies.append(stack.enter_context(FaultProxy(endpoint, 0.0)))
            return proxies[-1].endpoint

        rig = stack.enter_context(open_rig(2, reroute=through, transport=SHORT))
        for proxy in proxies:
            proxy.cut()
        began = time.monotonic()
        for transport, name in zip(rig, ("berlin", "amsterdam"), strict=True):
            failure = transport.receive(5.0).failure
            assert isinstance(failure, PeerLostError)
            assert str(failure).startswith(f"{name} is lost: no byte for 1 s; its connection ")
        assert time.monotonic() - began < 3.0


def test_a_delay_is_added_each_way_and_loses_nothing() -> None:
    with ExitStack() as stack:

        def through(_dialer: int, _target: int, endpoint: str) -> str:
            return stack.enter_context(FaultProxy(endpoint, 0.05)).endpoint

        rig = stack.enter_context(open_rig(2, reroute=through, transport=PATIENT))
        began = time.monotonic()
        for request in range(20):
            rig[0].send(1, message(rig.limits[0], rig[0].allocate, Kind.FORWARD, 1, rows=64, request=request))
        for _ in range(20):
            arrival = rig[1].receive(5.0)
            rig[1].send(0, message(rig.limits[1], rig[1].allocate, Kind.FORWARD_REPLY, 1, rows=64))
            arrival.message.payload.release()
        for _ in range(20):
            rig[0].receive(5.0).message.payload.release()
        assert 0.1 <= time.monotonic() - began < 1.0, "one round trip for all, not one for each"


def test_a_stalled_handshake_ends_at_its_deadline(tmp_path: Path) -> None:
    configs = node_configs(2, tmp_path, transport=SHORT)
    with Opening(configs[1], 2.5) as opening, Stranger(configs[0], configs[1]) as stranger:
        began = time.monotonic()
        assert stranger.connect().closed()
        assert 0.5 < time.monotonic() - began < 3.5
        assert isinstance(opening.outcome(), IdentityError)


def test_a_hello_that_trickles_in_ends_at_its_deadline(tmp_path: Path) -> None:
    configs = node_configs(2, tmp_path, transport=SHORT)
    with Opening(configs[1], 2.5) as opening, Stranger(configs[0], configs[1]) as stranger:
        stranger.secure()
        began = time.monotonic()
        ended = threading.Event()
        hello = wire.encode_header(Header(kind=Kind.HELLO, payload_length=1000)) + b" " * 1000
        for byte in hello:
            try:
                stranger.sock.sendall(bytes([byte]))
            except OSError:
                break
            if ended.wait(0.05):
                break
        assert time.monotonic() - began < 3.5
        assert isinstance(opening.outcome(), IdentityError)


@pytest.mark.parametrize(
    ("payload", "length", "rule"),
    [
        (b"{}", 2, "its keys must be"),
        (b"[" * 60000, 60000, "must be JSON"),
        (b"\xff\xfe", 2, "must be JSON"),
        (b"", 1 << 30, "must be at most 65536"),
    ],
    ids=["no keys", "deep", "no text", "long"],
)
def test_a_malformed_hello_is_refused(tmp_path: Path, payload: bytes, length: int, rule: str) -> None:
    configs = node_configs(2, tmp_path, transport=SHORT)
    with Opening(configs[1], 1.5), Stranger(configs[0], configs[1]) as stranger:
        stranger.secure().sock.sendall(
            wire.encode_header(Header(kind=Kind.HELLO, payload_length=length)) + payload
        )
        kind, answer = stranger.answer()
    assert kind is Kind.REFUSED
    refused = wire.decode_refused(answer)
    assert refused.code == "malformed"
    assert rule in refused.reason


def test_two_hundred_idle_connections_do_not_stop_an_honest_peer(tmp_path: Path) -> None:
    configs = node_configs(2, tmp_path, transport=PATIENT)
    with ExitStack() as stack:
        berlin = stack.enter_context(Opening(configs[1], 10.0))
        for _ in range(200):
            stack.enter_context(Stranger(configs[0], configs[1])).connect()
        amsterdam = stack.enter_context(Opening(configs[0], 10.0))
        for side in (amsterdam, berlin):
            side.join()
            assert side.error is None
        assert amsterdam.seconds < 5.0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pcmoe")]


def test_nobody_there_is_a_lost_peer_at_the_deadline(tmp_path: Path) -> None:
    configs = node_configs(3, tmp_path, transport=SHORT)
    with Opening(configs[0], 0.7) as opening:
        error = opening.outcome()
    assert isinstance(error, PeerLostError)
    assert "not connected after 0.7 s: berlin, lyon (127.0.0.1:" in str(error)
    assert opening.seconds < 4.0


def test_one_who_gives_up_connecting_tells_those_who_are_connected(tmp_path: Path) -> None:
    configs = node_configs(3, tmp_path, transport=SHORT)
    with Opening(configs[0], 1.0) as amsterdam, Opening(configs[1], 20.0) as berlin:
        assert isinstance(amsterdam.outcome(), PeerLostError)
        error = berlin.outcome()
    assert isinstance(error, PeerLostError)
    assert str(error).startswith("amsterdam ended the run: not connected after 1 s: lyon")


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    configs = node_configs(2, tmp_path)
    listen = configs[1].identity.listen
    assert listen is not None
    taken = socket.create_server(("127.0.0.1", int(listen.rpartition(":")[2])))
    with taken, Opening(configs[1]) as opening:
        assert f"identity.listen: {listen}: can't listen there" in str(opening.outcome())


def test_one_that_resets_before_tls_begins_leaves_no_socket_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname(), timeout=5)
        theirs, _ = server.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        with warnings.catch_warnings(record=True) as left_open:
            warnings.simplefilter("always", ResourceWarning)
            with pytest.raises(OSError, match="reset"):
                wrapped(ours, ssl.create_default_context(), "amsterdam")
            gc.collect()
    assert [str(each.message) for each in left_open] == []
