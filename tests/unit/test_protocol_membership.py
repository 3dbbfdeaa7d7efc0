"""Views and commits from a node's side: what it accepts, what it drops, what it says of itself."""

import pytest

from pcmoe_node.errors import ProtocolError
from pcmoe_node.protocol.membership import (
    Accept,
    Commit,
    Fail,
    Failure,
    Finish,
    Leave,
    Member,
    Notice,
    Report,
    View,
    common_round,
)

LAST = 9


def a_member(*, number: int = 3, committed: int = 4, rounds: tuple[int, ...] = (4, 5)) -> Member:
    """Participant 0 of two, loaded, in no view."""
    member = Member(
        me=0,
        members=2,
        incarnation="a",
        last_round=LAST,
        number=number,
        committed=committed,
        rounds=rounds,
    )
    member.loaded()
    return member


def a_view(number: int = 4, first: int = 5, mine: str = "a", other: int = 1) -> View:
    """A view of participant 0 and another one."""
    return View(number=number, round=first, members=((0, mine), (other, "b")))


def inside(member: Member, view: View) -> Member:
    """The member, once it has entered."""
    assert member.notice(Notice(view=view, mark=view.mark)) == [Accept(view)]
    member.entered(tuple(held for held in member.rounds if held <= view.round))
    return member


def commit(view: View, number: int) -> Notice:
    """What says that a round of this view is committed."""
    return Notice(mark=view.mark, committed=number)


# Views


def test_two_views_of_one_number_have_different_marks() -> None:
    assert len({a_view().mark, a_view(first=4).mark, a_view(mine="c").mark, a_view(number=5).mark}) == 4


def test_a_member_that_has_loaded_asks_for_a_view() -> None:
    member = Member(me=0, members=2, incarnation="a", last_round=LAST)
    assert not member.report().holds
    member.loaded()
    assert member.report().holds


def test_a_member_that_is_loading_accepts_no_view() -> None:
    member = Member(me=0, members=2, incarnation="a", last_round=LAST, rounds=(5,))
    assert member.notice(Notice(view=a_view())) == []


def test_on_its_way_in_a_member_has_left_nothing_and_asks_for_nothing() -> None:
    member = a_member()
    member.notice(Notice(view=a_view()))
    report = member.report()
    assert (report.view, report.mark, report.holds) == (3, "", False)


def test_a_member_that_has_entered_says_so_with_the_rounds_that_are_left() -> None:
    view = a_view(first=4)
    report = inside(a_member(), view).report()
    assert (report.view, report.mark, report.rounds) == (4, view.mark, (4,))
    assert not report.holds


def test_a_member_in_a_view_takes_no_other() -> None:
    assert inside(a_member(), a_view()).notice(Notice(view=a_view(number=5))) == []


def test_entering_without_a_view_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(RuntimeError, match="no view was accepted"):
        a_member().entered((4, 5))


@pytest.mark.parametrize("number", [1, 3])
def test_a_view_with_no_higher_number_than_any_before_is_ignored(number: int) -> None:
    assert a_member(number=3).notice(Notice(view=a_view(number=number))) == []


def test_a_view_that_names_another_process_of_this_participant_is_ignored() -> None:
    assert a_member().notice(Notice(view=a_view(mine="z"))) == []


def test_a_view_with_a_stranger_is_refused() -> None:
    with pytest.raises(ProtocolError, match="names participant 2, who is not in the agreement"):
        a_member().notice(Notice(view=a_view(other=2)))


def test_a_view_that_begins_before_a_committed_round_is_refused() -> None:
    with pytest.raises(ProtocolError, match="view 4 to begin at round 3; round 4 is committed already"):
        a_member(rounds=(3, 4, 5)).notice(Notice(view=a_view(first=3)))


def test_a_view_that_begins_at_a_round_this_node_does_not_hold_is_refused() -> None:
    with pytest.raises(ProtocolError, match="begin at round 6, which this node does not hold"):
        a_member().notice(Notice(view=a_view(first=6)))


def test_the_state_before_any_training_needs_not_be_held() -> None:
    view = a_view(first=0)
    assert a_member(committed=0, rounds=()).notice(Notice(view=view)) == [Accept(view)]


def test_a_refused_view_changes_nothing() -> None:
    member = a_member()
    before = member.report()
    with pytest.raises(ProtocolError):
        member.notice(Notice(view=a_view(first=6)))
    assert member.report() == before
    assert member.notice(Notice(view=a_view(number=4))) == [Accept(a_view(number=4))]


@pytest.mark.parametrize("entered", [False, True])
def test_a_view_that_is_over_is_left_by_whoever_is_in_it_or_on_the_way_in(entered: bool) -> None:
    member = a_member()
    member.notice(Notice(view=a_view()))
    if entered:
        member.entered((4, 5))
    assert member.notice(Notice(over=3)) == []
    assert member.notice(Notice(over=4, reason="lyon left it")) == [Leave("lyon left it")]


def test_a_member_that_left_asks_for_a_new_view_and_says_why() -> None:
    member = inside(a_member(), a_view())
    member.left("lyon is silent")
    report = member.report()
    assert report.holds
    assert (report.view, report.lost) == (4, "lyon is silent")
    assert inside(member, a_view(number=5)).report().lost == ""


# Commits


def test_a_commit_of_its_view_is_kept_once() -> None:
    view = a_view()
    member = inside(a_member(), view)
    assert member.notice(commit(view, 5)) == [Commit(5)]
    assert member.report().committed == 5
    assert member.notice(commit(view, 5)) == []


def test_a_commit_of_another_view_is_ignored() -> None:
    member = inside(a_member(), a_view())
    assert member.notice(commit(a_view(number=3), 5)) == []


def test_on_its_way_in_a_member_takes_no_commit() -> None:
    member = a_member()
    view = a_view(first=4)
    member.notice(Notice(view=view))
    assert member.notice(commit(view, 5)) == []


def test_whoever_has_left_its_view_takes_no_commit_of_it() -> None:
    view = a_view()
    member = inside(a_member(), view)
    member.left("lyon is silent")
    assert member.notice(commit(view, 5)) == []
    assert member.report().committed == 4


def test_a_commit_of_a_round_that_is_yet_to_come_is_refused() -> None:
    view = a_view()
    with pytest.raises(ProtocolError, match="round 6 is committed, which this node does not hold"):
        inside(a_member(), view).notice(commit(view, 6))


def test_a_commit_that_comes_after_its_round_made_room_for_newer_ones_is_ignored() -> None:
    view = a_view()
    member = inside(a_member(), view)
    member.stored((4, 6, 7))
    assert member.notice(commit(view, 5)) == []
    assert member.notice(commit(view, 6)) == [Commit(6)]


# The end


def test_nobody_finishes_before_its_last_round_is_committed() -> None:
    done = Notice(finished=LAST)
    assert a_member(committed=8, rounds=(8, 9)).notice(done) == []
    assert a_member(committed=9, rounds=(8, 9)).notice(done) == [Finish()]
    assert a_member(committed=9, rounds=(8, 9)).notice(Notice(finished=8)) == []


def test_a_member_in_a_view_takes_leave_of_its_peers_before_it_finishes() -> None:
    member = inside(a_member(committed=9, rounds=(8, 9)), a_view(first=9))
    assert member.notice(Notice(finished=LAST)) == []


def test_a_member_that_has_finished_says_so() -> None:
    member = a_member()
    member.finish()
    assert member.report().finished == LAST


def test_a_failure_goes_before_everything_else() -> None:
    failure = Failure(code=66, origin=None, reason="a disk is lost")
    assert a_member().notice(Notice(view=a_view(), over=4, failure=failure)) == [Fail(failure)]


def test_a_failure_of_ones_own_is_reported() -> None:
    failure = Failure(code=69, origin=0, reason="diverged")
    member = a_member()
    member.fail(failure)
    assert member.report().failure == failure


def test_who_keeps_a_view_from_forming_is_remembered() -> None:
    member = a_member()
    member.notice(Notice(missing=((1, "is loading"),)))
    assert member.missing == ((1, "is loading"),)


# The round to begin with


def holding(*rounds: int, view: int = 1, committed: int = 0) -> Report:
    """A report of somebody who was in a view and holds these."""
    return Report(view=view, ready=True, rounds=rounds, committed=committed)


@pytest.mark.parametrize(
    ("reports", "first"),
    [
        ((holding(view=0), holding(view=0)), 0),
        ((holding(1, 2), holding(1, 2)), 2),
        ((holding(1, 2), holding(1)), 1),
        ((holding(1), holding()), 0),
        ((holding(4, 6, 7), holding(4, 5, 6)), 6),
        ((holding(5, 6), holding(5, 6), holding(4, 5)), 5),
        ((holding(4, 5, committed=4), holding(4, committed=4)), 4),
        ((holding(3, view=0), holding(3, view=0)), 3),
    ],
    ids=str,
)
def test_a_view_begins_at_the_newest_round_that_everybody_holds(
    reports: tuple[Report, ...], first: int
) -> None:
    assert common_round({str(who): report for who, report in enumerate(reports)}) == (first, None)


@pytest.mark.parametrize(
    ("reports", "words"),
    [
        ((holding(4, 5), holding()), "lyon holds none"),
        ((holding(4, 5), holding(view=0)), "hold round 4 or a later one, but lyon holds none"),
        ((holding(5, committed=5), holding(3, 4)), "round 5 or a later one, but lyon holds rounds 3, 4"),
        ((holding(5, committed=5), holding(4)), "but lyon holds round 4"),
        ((holding(1), holding(view=0)), "hold round 1 or a later one, but lyon holds none"),
        ((holding(7), holding(6)), "but berlin holds round 7; lyon holds round 6"),
    ],
    ids=str,
)
def test_whoever_holds_too_little_has_lost_its_disk_and_is_named(
    reports: tuple[Report, Report], words: str
) -> None:
    first, lost = common_round(dict(zip(("berlin", "lyon"), reports, strict=True)))
    assert first == 0
    assert lost is not None
    assert words in lost


def test_whoever_has_not_stored_its_first_round_yet_has_lost_nothing() -> None:
    reports = {"berlin": holding(1), "lyon": holding(), "porto": holding(view=0)}
    assert common_round(reports)[1] == (
        "checkpoints are lost or not mounted: others have stored round 1 and everybody must hold round 1 or a later "
        "one, but porto holds none"
    )
