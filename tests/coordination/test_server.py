"""The coordinator over mutual TLS: whatever comes to its door, those who train are served."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.exchange.rigs import changed, coordinating, node_configs, wait_until
from tests.exchange.strangers import Stranger

from pcmoe_node.config import NodeConfig
from pcmoe_node.coordination.seat import Seat
from pcmoe_node.coordination.server import CoordinatorServer
from pcmoe_node.coordination.session import TlsPlace, hello_of
from pcmoe_node.coordination.words import LIMIT
from pcmoe_node.errors import IdentityError, NodeError, PeerLostError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.base import Header, Kind
from pcmoe_node.protocol.membership import Failure, Member, View

TRANSPORT = {"peer_timeout_seconds": 2}


class Table:
    """A coordinator and the seats of two nodes, which do nothing but sit."""

    def __init__(self, configs: list[NodeConfig], stack: ExitStack) -> None:
        self.configs = configs
        self._stack = stack
        self.server: CoordinatorServer = stack.enter_context(coordinating(configs))

    def sit(self, index: int, config: NodeConfig | None = None, *, loaded: bool = True) -> Seat:
        """A node takes its seat, with no rounds."""
        place = TlsPlace(config or self.configs[index])
        self._stack.callback(place.close)

        def member(incarnation: str) -> Member:
            return Member(me=index, members=2, incarnation=incarnation, last_round=9)

        seat = place.sit_down(member)
        if loaded:
            seat.loaded(())
        return seat

    def enter(self, *seats: Seat) -> View:
        """The view that all enter."""
        views = [
            seat.await_view(time.monotonic() + 10.0, "within 10 s", lambda _absent: None) for seat in seats
        ]
        assert views[0] is not None and all(view == views[0] for view in views)
        for seat in seats:
            seat.entered(())
        return views[0]

    def stranger(self, index: int) -> Stranger:
        """A client that speaks by hand, with a node's certificate."""
        config = self.configs[index]
        coordinator = changed(config, identity={"listen": config.coordinator.endpoint})
        stranger = self._stack.enter_context(Stranger(config, coordinator))
        stranger.hello = hello_of(config, "5" * 32)
        return stranger


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    with ExitStack() as stack:
        yield Table(node_configs(2, tmp_path, transport=TRANSPORT), stack)


def said(kind: Kind, payload: bytes) -> bytes:
    """The bytes of a frame."""
    return wire.encode_header(Header(kind=kind, payload_length=len(payload))) + payload


def test_nodes_that_sit_down_get_one_view_and_their_rounds_are_committed(table: Table) -> None:
    seats = [table.sit(0), table.sit(1)]
    assert table.enter(*seats).number == 1
    seats[0].stored((1,))
    assert seats[0].committed == 0
    seats[1].stored((1,))
    wait_until(lambda: all(seat.committed == 1 for seat in seats))
    shown = table.server.page.as_json()
    assert (shown["state"], shown["view"], shown["round"]) == ("RUNNING", 1, 1)


def test_a_node_that_starts_again_ends_the_view_and_everybody_gets_a_new_one(table: Table) -> None:
    seats = [table.sit(0), table.sit(1)]
    table.enter(*seats)
    heard: list[NodeError | None] = []
    seats[0].inside(heard.append)
    again = table.sit(1)
    wait_until(lambda: bool(heard))
    assert str(heard[0]) == "view 1 is over: berlin has started again"
    seats[0].left("told so")
    assert table.enter(seats[0], again).number == 2


def test_the_older_of_two_processes_of_one_participant_is_told_to_end(table: Table) -> None:
    older = table.sit(1)
    wait_until(lambda: len(table.server._mind.present()) == 1)
    table.sit(1)
    with pytest.raises(IdentityError, match="another process of berlin has started since"):
        older.await_view(time.monotonic() + 10.0, "within 10 s", lambda _absent: None)


def test_a_failure_reaches_those_who_only_wait(table: Table) -> None:
    seats = [table.sit(0, loaded=False), table.sit(1)]
    wait_until(lambda: len(table.server._mind.present()) == 2)
    seats[0].fail(Failure(code=66, origin=0, reason="no space left"))
    with pytest.raises(NodeError, match="amsterdam ended the run: no space left") as caught:
        seats[1].await_view(time.monotonic() + 10.0, "within 10 s", lambda _absent: None)
    assert caught.value.exit_code == 66


def test_whoever_is_missing_is_named_to_those_who_wait(table: Table) -> None:
    seat = table.sit(0)
    with pytest.raises(PeerLostError, match="no view within 1 s: berlin is not connected"):
        seat.await_view(time.monotonic() + 1.0, "within 1 s", lambda _absent: None)


def test_an_agreement_that_differs_ends_both_naming_the_path(table: Table) -> None:
    seat = table.sit(0)
    wait_until(lambda: len(table.server._mind.present()) == 1)
    other = changed(
        table.configs[1],
        identity={
            "agreement": json.dumps({"id": "test-2026", "training": {"rounds": 3}}),
            "agreement_digest": "sha256:" + "c" * 64,
        },
    )
    with pytest.raises(IdentityError, match="training.rounds: ours 3, coordinator's 2"):
        table.sit(1, other).await_view(time.monotonic() + 10.0, "within 10 s", lambda _absent: None)
    with pytest.raises(IdentityError, match="training.rounds: ours 2, berlin's 3"):
        seat.await_view(time.monotonic() + 10.0, "within 10 s", lambda _absent: None)


def test_an_agreement_that_differs_is_no_business_of_a_view_that_stands(table: Table) -> None:
    seats = [table.sit(0), table.sit(1)]
    table.enter(*seats)
    wait_until(lambda: table.server.page.shown.view == 1)
    heard: list[NodeError | None] = []
    seats[0].inside(heard.append)
    with table.stranger(1) as stranger:
        kind, _ = stranger.secure().introduce(agreement_digest="sha256:" + "c" * 64)
        assert kind is Kind.DIFFERS
        assert stranger.closed()
    assert heard == []
    assert table.server.page.shown.view == 1


@pytest.mark.parametrize(
    "words",
    [
        said(Kind.REPORT, b"{"),
        said(Kind.REPORT, b"[" * 50000),
        said(Kind.REPORT, b'{"view": -1}'),
        said(Kind.REPORT, b'{"view": 1e3}'),
        said(Kind.REPORT, b'{"rounds": [3, 2]}'),
        said(Kind.REPORT, b'{"rounds": [0]}'),
        said(Kind.REPORT, b'{"rounds": [99999999999999999999]}'),
        said(Kind.REPORT, b'{"failure": {"code": 66}}'),
        said(Kind.REPORT, b""),
        said(Kind.BEAT, b"x"),
        said(Kind.NOTICE, b"{}"),
        said(Kind.FORWARD, b"x"),
        wire.encode_header(Header(kind=Kind.REPORT, payload_length=LIMIT + 1)),
        b"\xff" * wire.HEADER_SIZE,
    ],
    ids=[
        "no JSON", "deep", "negative", "a float", "not ascending", "round 0", "huge", "half a failure", "empty",
        "a short beat", "a notice", "a tensor", "long", "no header",
    ],
)  # fmt: skip
def test_words_that_may_not_be_said_end_that_session_and_nothing_else(table: Table, words: bytes) -> None:
    seats = [table.sit(0), table.sit(1)]
    table.enter(*seats)
    wait_until(lambda: table.server.page.shown.view == 1)
    stranger = table.stranger(1)
    # As berlin's own incarnation, so that the session counts.
    incarnation = next(i for m, (i, _) in table.server._mind.present().items() if m == 1)
    assert stranger.secure().introduce(incarnation=incarnation)[0] is Kind.WELCOME
    stranger.sock.sendall(words)
    assert stranger.closed()
    seats[0].stored((1,))
    seats[1].stored((1,))
    wait_until(lambda: all(seat.committed == 1 for seat in seats), 10.0)
    assert table.server.page.shown.view == 1


@pytest.mark.parametrize("changes", [{"sender": "coordinator"}, {"sender": "lyon"}, {"receiver": "berlin"}])
def test_a_hello_from_nobody_of_the_agreement_is_refused(table: Table, changes: dict[str, Any]) -> None:
    kind, payload = table.stranger(1).secure().introduce(**changes)
    assert kind is Kind.REFUSED
    assert wire.decode_refused(payload).code == "identity"


def test_a_node_can_not_say_that_it_is_another(table: Table) -> None:
    stranger = table.stranger(1)
    stranger.hello = replace(stranger.hello, sender="amsterdam")
    kind, payload = stranger.secure().introduce()
    assert kind is Kind.REFUSED
    assert "must be exactly amsterdam" in wire.decode_refused(payload).reason


def test_two_hundred_idle_connections_keep_nobody_out(table: Table) -> None:
    for _ in range(200):
        table.stranger(1).connect()
    began = time.monotonic()
    table.enter(table.sit(0), table.sit(1))
    assert time.monotonic() - began < 8.0


@pytest.mark.parametrize("secured", [False, True], ids=["no TLS", "no HELLO"])
def test_a_stalled_newcomer_is_ended_at_its_deadline(table: Table, secured: bool) -> None:
    stranger = table.stranger(1).connect()
    if secured:
        stranger.secure()
    began = time.monotonic()
    assert stranger.closed()
    assert 1.0 < time.monotonic() - began < 6.0


def test_a_silent_session_ends_and_its_node_is_missing(table: Table) -> None:
    seat = table.sit(0)
    stranger = table.stranger(1)
    assert stranger.secure().introduce()[0] is Kind.WELCOME
    stranger.sock.sendall(said(Kind.REPORT, b'{"ready": false}'))
    wait_until(lambda: "berlin is loading" in seat.absent())
    wait_until(lambda: "berlin is not connected" in seat.absent(), 8.0)


def test_a_coordinator_that_was_away_takes_up_the_view_that_stands(tmp_path: Path) -> None:
    configs = node_configs(2, tmp_path, transport=TRANSPORT)
    with ExitStack() as nodes:
        with ExitStack() as first:
            table = Table(configs, first)
            places = [TlsPlace(config) for config in configs]
            seats = [place.sit_down(_member(index)) for index, place in enumerate(places)]
            for seat, place in zip(seats, places, strict=True):
                nodes.callback(place.close)
                seat.loaded(())
            assert table.enter(*seats).number == 1
        heard: list[NodeError | None] = []
        seats[0].inside(heard.append)
        for seat in seats:
            seat.stored((1,))
        wait_until(lambda: bool(seats[0].trouble) and bool(seats[1].trouble))
        assert [seat.committed for seat in seats] == [0, 0]
        with coordinating(configs) as second:
            wait_until(lambda: all(seat.committed == 1 for seat in seats), 10.0)
            assert second.page.shown.view == 1
        assert heard in ([], [None])


def _member(index: int) -> Callable[[str], Member]:
    return lambda incarnation: Member(me=index, members=2, incarnation=incarnation, last_round=9)
