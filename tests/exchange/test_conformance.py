"""What any transport must do, held against each of them."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import pytest
from tests.exchange.rigs import Rig, message, open_rig, pattern, together, wait_until

from pcmoe_node.errors import DivergedError, NodeError, PeerLostError, ProtocolError
from pcmoe_node.exchange import layout, wire
from pcmoe_node.exchange.base import Arrival, Header, Kind, Message

Opener = Callable[..., Rig]


@pytest.fixture(params=["local", "tls"])
def opened(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Opens rigs of the kind under test and closes them afterwards."""
    rigs: list[Rig] = []
    kind: Literal["local", "tls"] = request.param

    def opener(n: int, **overrides: Any) -> Rig:
        rigs.append(open_rig(n, kind, **overrides))
        return rigs[-1]

    yield opener
    for rig in rigs:
        rig.close()


def send(rig: Rig, sender: int, receiver: int, kind: Kind = Kind.FORWARD, **fields: Any) -> Header:
    """Send one message of the right size; requests go to the host, replies come from it."""
    host = sender if kind in layout.REPLIES else receiver
    sent = message(rig.limits[sender], rig[sender].allocate, kind, host, **fields)
    rig[sender].send(receiver, sent)
    return sent.header


def received(rig: Rig, index: int, timeout: float = 10.0) -> Arrival:
    arrival = rig[index].receive(timeout)
    assert arrival is not None, "nothing arrived"
    assert isinstance(arrival, Arrival)
    return arrival


def take(rig: Rig, index: int) -> tuple[int, Header, bytes]:
    """Receive a message, give its buffer back: sender, header, payload with padding."""
    arrival = received(rig, index)
    assert arrival.failure is None, arrival.failure
    assert arrival.message is not None
    header, payload = arrival.message.header, arrival.message.payload
    if payload is None:
        return arrival.peer, header, b""
    data = bytes(payload.view[: header.payload_length + header.pad_length])
    payload.release()
    return arrival.peer, header, data


def failure_at(rig: Rig, index: int, deadline: float = 10.0) -> NodeError:
    """The failure that participant `index` is told, whatever arrives before it."""
    end = time.monotonic() + deadline
    while (left := end - time.monotonic()) > 0:
        arrival = rig[index].receive(left)
        if arrival is not None and arrival.failure is not None:
            assert isinstance(arrival.failure, NodeError)
            return arrival.failure
    raise AssertionError("no failure arrived")


def test_a_message_arrives_once_with_its_header_and_its_bytes(opened: Opener) -> None:
    rig = opened(2)
    header = send(rig, 0, 1, rows=10, layer=1, request=7, step=3, micro_batch=1)
    peer, got, data = take(rig, 1)
    assert (peer, got) == (0, header)
    assert data == pattern(header.payload_length, 7) + bytes(header.pad_length)
    assert rig[1].receive(0.2) is None


def test_what_a_buffer_held_before_never_leaves_in_the_padding(opened: Opener) -> None:
    rig = opened(2)
    poisoned = [rig[0].allocate(size) for size in (1000, 2000, 4000, 9000, 17000)]
    for buffer in poisoned:
        buffer.view[:] = b"\xaa" * len(buffer.view)
    for buffer in poisoned:
        buffer.release()
    for rows in (0, 1, 7, 33, 64):
        header = send(rig, 0, 1, rows=rows, request=rows)
        data = take(rig, 1)[2]
        assert data[header.payload_length :] == bytes(header.pad_length)


def test_a_message_without_rows_is_padded_like_any_other(opened: Opener) -> None:
    rig = opened(2)
    header = send(rig, 0, 1, rows=0)
    assert header.payload_length == 0
    assert header.pad_length > 0
    assert take(rig, 1)[1] == header


def test_every_kind_of_message_arrives(opened: Opener) -> None:
    rig = opened(2)
    sent = [
        send(rig, 0, 1, kind, rows=3)
        for kind in (Kind.FORWARD, Kind.BACKWARD, Kind.EVALUATE, *layout.REPLIES)
    ]
    rig[0].send(1, Message(Header(kind=Kind.DONE, step=8)))
    for kind, size in ((Kind.STEP_END, 9), (Kind.VOTE, 9)):
        payload = rig[0].allocate(size)
        rig[0].send(1, Message(Header(kind=kind, payload_length=size), payload))
    kinds = sorted(take(rig, 1)[1].kind for _ in range(len(sent) + 3))
    expected = [header.kind for header in sent] + [Kind.STEP_END, Kind.VOTE, Kind.DONE]
    assert kinds == sorted(expected)


def test_eight_megabytes_arrive_whole(opened: Opener) -> None:
    rig = opened(2, quota={"rows_per_message": 32768})
    header = send(rig, 0, 1, rows=32000)
    assert header.payload_length > 8 << 20
    assert take(rig, 1)[2][: header.payload_length] == pattern(header.payload_length, 0)


def test_many_senders_at_once_lose_nothing_and_mix_nothing(opened: Opener) -> None:
    rig = opened(3)
    per_thread = 40

    def burst(sender: int, first: int) -> None:
        for request in range(first, first + per_thread):
            for receiver in range(3):
                if receiver != sender:
                    send(rig, sender, receiver, rows=request % 64, request=request)

    together([partial(burst, s, f) for s in range(3) for f in (0, 1000)])
    for index in range(3):
        seen = set()
        for _ in range(2 * 2 * per_thread):
            peer, header, data = take(rig, index)
            assert data[: header.payload_length] == pattern(header.payload_length, header.request)
            seen.add((peer, header.request))
        assert len(seen) == 4 * per_thread
        assert rig[index].receive(0) is None


def test_in_the_steady_state_no_buffer_is_made(opened: Opener) -> None:
    rig = opened(2)

    def exchange() -> None:
        for request in range(20):
            send(rig, 0, 1, rows=40, request=request)
            take(rig, 1)
            send(rig, 1, 0, Kind.FORWARD_REPLY, rows=40, request=request)
            take(rig, 0)

    exchange()
    pools = [transport._pool for transport in rig]
    before = [pool.created_blocks for pool in pools]
    exchange()
    assert [pool.created_blocks for pool in pools] == before


def test_traffic_is_the_same_over_every_transport(opened: Opener) -> None:
    rig = opened(2)
    header = send(rig, 0, 1, rows=10)
    take(rig, 1)
    size = wire.HEADER_SIZE + header.payload_length + header.pad_length
    sent, got = rig[0].traffic()[1], rig[1].traffic()[0]
    assert (sent.bytes_sent, sent.messages_sent, sent.hidden_rows_sent) == (size, 1, 10)
    assert (got.bytes_received, got.messages_received, got.bytes_sent) == (size, 1, 0)


def test_a_message_beyond_the_agreed_limits_ends_the_run_on_both_sides(opened: Opener) -> None:
    rig = opened(2)
    send(rig, 0, 1, rows=3, micro_batch=2)
    here, there = failure_at(rig, 1), failure_at(rig, 0)
    assert isinstance(here, ProtocolError)
    assert str(here) == "amsterdam sent FORWARD with micro_batch 2: must be from 0 to 1"
    assert isinstance(there, ProtocolError)
    assert str(there) == f"berlin ended the run: {here}"


def test_an_abort_reaches_everybody_with_the_root_cause(opened: Opener) -> None:
    rig = opened(4)
    rig[2].abort(DivergedError("the loss was not finite ten steps in a row"))
    for index in (0, 1, 3):
        failure = failure_at(rig, index)
        assert isinstance(failure, DivergedError)
        assert str(failure) == "lyon ended the run: the loss was not finite ten steps in a row"


def test_an_abort_that_is_passed_on_names_where_it_began(opened: Opener) -> None:
    rig = opened(3)
    send(rig, 0, 1, rows=3, micro_batch=2)
    rig[0].abort(failure_at(rig, 0))
    cause = "amsterdam sent FORWARD with micro_batch 2: must be from 0 to 1"
    assert str(failure_at(rig, 2)) == f"berlin ended the run: {cause} (reported by amsterdam)"


def test_of_each_peer_only_the_first_failure_is_told(opened: Opener) -> None:
    rig = opened(3)
    rig[0].abort(DivergedError("first"))
    assert str(failure_at(rig, 2)) == "amsterdam ended the run: first"
    rig[2].interrupt(PeerLostError("of one's own"))
    rig[2].interrupt(PeerLostError("again"))
    assert str(failure_at(rig, 2)) == "of one's own"
    rig[1].abort(PeerLostError("second"))
    assert str(failure_at(rig, 2)) == "berlin ended the run: second"
    assert rig[2].receive(0.3) is None


def test_a_peer_that_dies_is_reported_within_the_agreed_time(opened: Opener) -> None:
    rig = opened(3, transport={"peer_timeout_seconds": 1})
    rig.kill(1)
    for index in (0, 2):
        failure = failure_at(rig, index, deadline=5.0)
        assert isinstance(failure, PeerLostError)
        assert "berlin" in str(failure)


def test_a_goodbye_is_no_failure_and_what_was_queued_arrives(opened: Opener) -> None:
    rig = opened(2)
    headers = [send(rig, 0, 1, rows=64, request=request) for request in range(50)]
    rig[0].close()
    requests = {take(rig, 1)[1].request for _ in headers}
    assert requests == set(range(50))
    assert rig[1].receive(0.3) is None


def test_work_for_a_peer_that_has_left_is_a_lost_peer(opened: Opener) -> None:
    rig = opened(2)
    rig[0].close()
    wait_until(lambda: rig[1].pulses()[0].left)
    rig[1].send(0, Message(Header(kind=Kind.DONE)))
    assert rig[1].receive(0) is None
    send(rig, 1, 0, rows=1)
    assert str(failure_at(rig, 1)) == "amsterdam left before it was done"


def test_progress_is_seen_by_the_peers(opened: Opener) -> None:
    rig = opened(2, transport={"peer_timeout_seconds": 1})
    rig[0].progress("TRAINING")
    rig[0].progress("TRAINING")
    wait_until(lambda: rig[1].pulses()[0].counter >= 2)
    assert rig[1].pulses()[0].phase == "TRAINING"
    assert rig[1].pulses()[0].still_seconds < 2.0


def test_whom_a_peer_waits_for_is_seen_by_the_others(opened: Opener) -> None:
    rig = opened(3, transport={"peer_timeout_seconds": 1})
    rig[0].waiting(frozenset({1, 2}))
    wait_until(lambda: rig[1].pulses()[0].waiting == {1, 2})
    rig[0].waiting(frozenset())
    wait_until(lambda: rig[2].pulses()[0].waiting == frozenset())


def test_a_receive_can_be_ended_by_ones_own_side_with_an_error_or_with_nothing(opened: Opener) -> None:
    rig = opened(2)
    rig[0].interrupt(None)
    assert received(rig, 0) == Arrival(0)
    rig[0].interrupt(PeerLostError("the view is over"))
    assert str(failure_at(rig, 0)) == "the view is over"


def test_close_and_abort_may_come_twice_and_leave_no_thread(opened: Opener) -> None:
    before = set(threading.enumerate())
    rig = opened(3)
    send(rig, 0, 1, rows=3)
    began = time.monotonic()
    for transport in rig:
        transport.close()
        transport.abort(PeerLostError("too late"))
        transport.close()
    assert time.monotonic() - began < 5.0
    assert set(threading.enumerate()) <= before


def test_a_receive_ends_at_its_deadline(opened: Opener) -> None:
    rig = opened(2)
    began = time.monotonic()
    assert rig[0].receive(0.1) is None
    assert 0.05 < time.monotonic() - began < 2.0


def test_one_participant_alone_is_connected_at_once(opened: Opener) -> None:
    rig = opened(1)
    assert rig[0].receive(0) is None
    assert rig[0].traffic() == {}
