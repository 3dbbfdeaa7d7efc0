"""A node's seat: what it waits for, what ends the wait, and what reaches a node that is in the middle of a step."""

import threading
import time

import pytest

from pcmoe_node.coordination.seat import Seat
from pcmoe_node.errors import DivergedError, IdentityError, NodeError, PeerLostError
from pcmoe_node.protocol.membership import Failure, Member, Notice, View

NAMES = ("amsterdam", "berlin")
ME = "a" * 32


def seat_of(committed: int = 0) -> Seat:
    """Amsterdam's seat, loaded."""
    member = Member(me=0, members=2, incarnation=ME, last_round=9, committed=committed)
    seat = Seat(member, NAMES, lambda: None)
    seat.trouble = ""
    seat.loaded(())
    return seat


def view_of(number: int, round_number: int = 0) -> View:
    """A view that amsterdam is in."""
    return View(number=number, round=round_number, members=((0, ME), (1, "b" * 32)))


def quiet(_absent: str) -> None:
    """Nobody listens."""


def inside(seat: Seat, view: View) -> list[NodeError | None]:
    """Enter a view; what the node is interrupted with from then on."""
    seat.notice(Notice(view=view))
    assert seat.await_view(time.monotonic() + 1.0, "within 1 s", quiet) == view
    seat.entered(())
    heard: list[NodeError | None] = []
    seat.inside(heard.append)
    return heard


def test_a_wait_ends_with_the_view_that_is_offered() -> None:
    seat = seat_of()
    threading.Timer(0.05, lambda: seat.notice(Notice(view=view_of(3)))).start()
    assert seat.await_view(time.monotonic() + 5.0, "within 5 s", quiet) == view_of(3)


def test_a_wait_that_is_over_says_who_is_missing() -> None:
    seat, told = seat_of(), []  # type: ignore[var-annotated]
    seat.notice(Notice(missing=((1, "is loading"),)))
    began = time.monotonic()
    with pytest.raises(PeerLostError, match="no view within 0.2 s: berlin is loading"):
        seat.await_view(time.monotonic() + 0.2, "within 0.2 s", told.append)
    assert time.monotonic() - began < 2.0
    assert told and told[-1] == "berlin is loading"


def test_a_coordinator_that_is_not_at_hand_is_what_is_missing() -> None:
    seat = seat_of()
    seat.trouble = "127.0.0.1:1: Connection refused"
    with pytest.raises(
        PeerLostError, match="the coordinator can't be asked: 127.0.0.1:1: Connection refused"
    ):
        seat.await_view(time.monotonic() + 0.1, "within 0.1 s", quiet)


def test_a_failure_elsewhere_ends_the_wait_with_its_class_and_its_cause() -> None:
    seat = seat_of()
    seat.notice(Notice(failure=Failure(code=69, origin=1, reason="ten steps in a row")))
    with pytest.raises(DivergedError, match="berlin ended the run: ten steps in a row") as caught:
        seat.await_view(time.monotonic() + 1.0, "within 1 s", quiet)
    assert (caught.value.origin, caught.value.reason) == (1, "ten steps in a row")


def test_a_view_that_is_over_interrupts_the_node_inside_it() -> None:
    seat = seat_of()
    heard = inside(seat, view_of(3))
    seat.notice(Notice(over=3, reason="berlin has started again"))
    assert [str(error) for error in heard] == ["view 3 is over: berlin has started again"]
    assert isinstance(heard[0], PeerLostError)


def test_a_view_that_was_over_before_the_node_listened_interrupts_it_at_once() -> None:
    seat = seat_of()
    seat.notice(Notice(view=view_of(3)))
    seat.await_view(time.monotonic() + 1.0, "within 1 s", quiet)
    seat.notice(Notice(over=3, reason="berlin left it"))
    seat.entered(())
    heard: list[NodeError | None] = []
    seat.inside(heard.append)
    assert [str(error) for error in heard] == ["view 3 is over: berlin left it"]


def test_a_commit_only_makes_the_node_look_around() -> None:
    seat = seat_of()
    heard = inside(seat, view_of(3))
    seat.stored((1,))
    seat.notice(Notice(view=view_of(3), mark=view_of(3).mark, committed=1))
    assert heard == [None]
    assert seat.committed == 1


def test_an_error_of_the_coordinator_ends_a_node_that_waits_and_not_one_that_trains() -> None:
    seat = seat_of()
    heard = inside(seat, view_of(3))
    seat.refuse(IdentityError("its certificate has expired"))
    assert heard == []
    seat.left("lost berlin")
    with pytest.raises(PeerLostError, match="can't be asked: its certificate has expired"):
        seat.await_view(time.monotonic() + 0.1, "within 0.1 s", quiet)
    seat.refuse(IdentityError("its certificate has expired"))
    with pytest.raises(IdentityError):
        seat.await_view(time.monotonic() + 0.1, "within 0.1 s", quiet)


def test_a_run_that_everybody_took_leave_of_needs_this_node_no_more() -> None:
    seat = seat_of(committed=9)
    seat.notice(Notice(finished=9))
    assert seat.await_view(time.monotonic() + 1.0, "within 1 s", quiet) is None
