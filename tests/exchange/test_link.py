"""A link keeps every message until the peer has it: nothing is lost, doubled or reordered, and no memory is kept."""

import random
from collections.abc import Callable

import pytest

from pcmoe_node.errors import ProtocolError
from pcmoe_node.exchange.base import Buffer, Header, Kind, Message
from pcmoe_node.exchange.tls.link import Link


def numbered(number: int, released: list[int]) -> Message:
    """A message whose memory says when it is given back."""
    return Message(
        Header(kind=Kind.FORWARD, request=number), Buffer(bytearray(8), lambda _: released.append(number))
    )


def sent(link: Link, count: int) -> list[tuple[int, int]]:
    """Pull and write messages: (request, sequence) of each."""
    found = []
    for _ in range(count):
        pulled = link.pull()
        assert pulled is not None
        found.append((pulled[0].header.request, pulled[1].sequence))
        link.wrote()
    return found


def filled(count: int) -> tuple[Link, list[int]]:
    """A link with messages 1 … count, and the list of those given back."""
    link, released = Link(1, view=3), []  # type: ignore[var-annotated]
    for number in range(1, count + 1):
        link.queue(numbered(number, released))
    return link, released


def test_memory_is_given_back_when_the_peer_has_it_and_not_before() -> None:
    link, released = filled(3)
    assert sent(link, 3) == [(1, 1), (2, 2), (3, 3)]
    assert released == [] and not link.idle
    link.acknowledge(2)
    assert released == [1, 2]
    link.acknowledge(2)
    link.acknowledge(3)
    assert released == [1, 2, 3] and link.idle


def test_after_a_cut_what_was_not_taken_is_sent_again_with_its_number() -> None:
    link, released = filled(4)
    sent(link, 2)
    link.acknowledge(1)
    link.pull()  # the third is half written
    link.rewind()
    assert sent(link, 3) == [(2, 2), (3, 3), (4, 4)]
    link.acknowledge(4)
    assert released == [1, 2, 3, 4]


def test_what_arrived_although_its_acknowledgement_was_lost_is_not_sent_again() -> None:
    link, released = filled(3)
    sent(link, 2)
    link.rewind()
    link.acknowledge(2)  # the other side says so when it connects anew
    assert released == [1, 2]
    assert sent(link, 1) == [(3, 3)]


def test_a_message_acknowledged_while_it_is_written_again_keeps_its_memory_until_then() -> None:
    link, released = filled(1)
    sent(link, 1)
    link.rewind()
    link.pull()
    link.acknowledge(1)  # of the first time
    assert released == []
    link.wrote()
    assert released == [1] and link.idle


def test_nobody_can_acknowledge_what_was_never_written() -> None:
    link, _ = filled(2)
    link.pull()
    with pytest.raises(ProtocolError, match="acknowledged 1 messages of 0"):
        link.acknowledge(1)


def test_the_carriers_own_messages_go_first_and_are_not_numbered() -> None:
    link, released = filled(1)
    link.queue(Message(Header(kind=Kind.BEAT)))
    pulled = link.pull()
    assert pulled is not None and pulled[0].header.kind is Kind.BEAT
    assert (pulled[1].sequence, pulled[1].view) == (0, 3)
    link.wrote()
    assert sent(link, 1) == [(1, 1)]
    assert released == []


def test_a_repeated_message_is_taken_once_and_a_gap_is_not_expected() -> None:
    link = Link(1)
    assert link.expects(1) and not link.expects(2) and not link.expects(0)
    assert link.accept(1) and not link.accept(1)
    assert link.expects(1) and link.expects(2) and not link.expects(3)
    assert link.owes_acknowledgement


@pytest.mark.parametrize("end", [Link.drop, Link.close], ids=["dropped", "closed"])
def test_the_end_gives_every_memory_back_once(end: Callable[[Link], None]) -> None:
    link, released = filled(5)
    sent(link, 2)
    link.pull()
    end(link)
    link.wrote()
    assert sorted(released) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("seed", range(200))
def test_over_any_cuts_everything_arrives_once_in_order_and_all_memory_comes_back(seed: int) -> None:
    luck, released, arrived = random.Random(seed), [], []  # type: ignore[var-annotated]
    here, there = Link(1), Link(1)
    for number in range(1, 21):
        here.queue(numbered(number, released))
    on_the_way: list[tuple[int, int]] = []
    for _ in range(2000):
        what = luck.random()
        if what < 0.4 and (pulled := here.pull()) is not None:
            on_the_way.append((pulled[0].header.request, pulled[1].sequence))
            here.wrote()
        elif what < 0.7 and on_the_way:
            request, sequence = on_the_way.pop(0)
            assert there.expects(sequence)
            if there.accept(sequence):
                arrived.append(request)
        elif what < 0.85:
            here.acknowledge(there.delivered)
        elif what < 0.95:  # a cut: what is on the way is lost, now and then half a message too
            if luck.random() < 0.5:
                here.pull()
            on_the_way.clear()
            told = there.delivered if luck.random() < 0.7 else 0  # a stale word
            here.rewind()
            here.acknowledge(max(told, 0))
        if here.idle:
            break
    here.acknowledge(there.delivered)
    assert arrived == list(range(1, 21))
    assert sorted(released) == list(range(1, 21)), "each memory came back once"
