"""The coordinator's mind: it says nothing that depends on a report it lacks."""

import pytest

from pcmoe_node.protocol.coordinator import Coordinator, Tell
from pcmoe_node.protocol.membership import Failure, Notice, Report, View

NAMES = ("berlin", "lyon", "porto")
EVERYBODY = (0, 1, 2)


def holding(*rounds: int, view: int = 0, committed: int = 0, finished: int = 0) -> Report:
    """A report of whoever wants a view."""
    return Report(view=view, ready=True, rounds=rounds, committed=committed, finished=finished)


def inside(view: View, *rounds: int) -> Report:
    """A report from inside a view."""
    return Report(view=view.number, mark=view.mark, ready=True, rounds=rounds)


def said(tells: list[Tell], member: int) -> Notice:
    """The last that was said to a member."""
    return [tell.notice for tell in tells if tell.member == member][-1]


def asked(*reports: Report, coordinator: Coordinator | None = None) -> tuple[Coordinator, list[Tell]]:
    """A coordinator that has heard these of participants 0, 1 …, and what it said last."""
    coordinator = coordinator or Coordinator(NAMES)
    tells: list[Tell] = []
    for member, report in enumerate(reports):
        coordinator.connected(member, f"i{member}")
        tells = coordinator.report(member, f"i{member}", report)
    return coordinator, tells


def formed(*rounds: int) -> tuple[Coordinator, View]:
    """A coordinator and the view it has formed; everybody holds these rounds."""
    coordinator, tells = asked(*[holding(*rounds)] * 3)
    view = said(tells, 0).view
    assert view is not None
    return coordinator, view


def trained(*rounds: int) -> tuple[Coordinator, View]:
    """The same, once everybody has said that it is in."""
    coordinator, view = formed(*rounds)
    for member in EVERYBODY:
        coordinator.report(member, f"i{member}", inside(view, *rounds))
    return coordinator, view


def learned(*reports: Report) -> tuple[Coordinator, list[Tell]]:
    """A coordinator that was started while the view of `trained` stood."""
    return asked(*reports)


# Forming a view


@pytest.mark.parametrize("heard", [1, 2])
def test_no_view_is_formed_before_everybody_has_reported(heard: int) -> None:
    coordinator, tells = asked(*[holding(4)] * heard)
    assert coordinator.view == 0
    assert all(tell.notice.view is None for tell in tells)


def test_no_view_is_formed_while_somebody_is_loading() -> None:
    coordinator, _ = asked(holding(4), holding(4), Report(rounds=(4,)))
    assert coordinator.view == 0
    assert coordinator.missing() == ((2, "is loading"),)


def test_once_everybody_asks_for_a_view_all_are_told_the_same_one() -> None:
    coordinator, tells = asked(holding(4, 5), holding(4), holding(4, 5))
    views = {said(tells, member).view for member in EVERYBODY}
    assert views == {View(number=1, round=4, members=((0, "i0"), (1, "i1"), (2, "i2")))}
    assert coordinator.view == 1


def test_a_view_has_a_higher_number_than_any_that_was_ever_accepted() -> None:
    coordinator, _ = asked(holding(view=3), holding(view=7), holding(view=0))
    assert coordinator.view == 8


def test_a_lost_disk_fails_the_run_and_is_named() -> None:
    coordinator, tells = asked(holding(4, 5, view=2), holding(view=0), holding(4, 5, view=2))
    failure = said(tells, 2).failure
    assert coordinator.view == 0
    assert failure is not None
    assert (failure.code, failure.origin) == (66, None)
    assert "but lyon holds none" in failure.reason


def test_whoever_starts_after_a_failure_begins_anew() -> None:
    coordinator, _ = asked(holding(4, 5, view=2), holding(view=0), holding(4, 5, view=2))
    for member in EVERYBODY:
        coordinator.connected(member, f"j{member}")
        tells = coordinator.report(member, f"j{member}", holding(5, view=2))
    assert {said(tells, member).failure for member in EVERYBODY} == {None}
    assert coordinator.view == 3


def test_who_is_missing_is_told_to_the_others() -> None:
    _, tells = asked(holding(4), Report())
    assert said(tells, 0).missing == ((1, "is loading"), (2, "is not connected"))
    assert said(tells, 1).missing == ((2, "is not connected"),)


# The end of a view


def test_a_member_that_left_ends_the_view_for_all() -> None:
    coordinator, view = trained(5)
    lost = Report(view=1, ready=True, rounds=(5,), lost="porto is silent")
    tells = coordinator.report(0, "i0", lost)
    assert coordinator.view == 0
    assert (said(tells, 1).over, said(tells, 1).reason) == (view.number, "berlin left it: porto is silent")


def test_a_member_that_has_started_again_ends_the_view() -> None:
    coordinator, view = trained(5)
    coordinator.disconnected(1, "i1")
    tells = coordinator.report(1, "again", Report(view=1, rounds=(5,)))
    assert (said(tells, 0).over, said(tells, 0).reason) == (view.number, "lyon has started again")


def test_a_broken_session_ends_no_view() -> None:
    coordinator, view = trained(5)
    assert coordinator.disconnected(1, "i1") == []
    coordinator.connected(1, "i1")
    coordinator.report(1, "i1", inside(view, 5))
    assert coordinator.view == view.number


def test_a_member_on_its_way_in_ends_no_view() -> None:
    coordinator, view = formed(5)
    coordinator.report(0, "i0", inside(view, 5))
    coordinator.report(1, "i1", Report(rounds=(5,)))
    assert coordinator.view == view.number


def test_the_next_view_waits_until_all_who_were_offered_the_last_one_have_answered() -> None:
    coordinator, first = formed(5)
    coordinator.report(0, "i0", inside(first, 5))
    tells = coordinator.report(0, "i0", holding(5, view=1))
    assert coordinator.view == 0
    assert said(tells, 0).missing == ((1, "has not answered yet"), (2, "has not answered yet"))
    coordinator.report(1, "i1", holding(5, view=1))
    tells = coordinator.report(2, "i2", holding(5, view=1))
    assert {view.number for member in EVERYBODY if (view := said(tells, member).view)} == {2}


def test_what_was_said_before_a_view_was_offered_does_not_count_as_a_lost_disk() -> None:
    coordinator, view = formed()
    coordinator.report(0, "i0", inside(view, 1))
    coordinator.report(0, "i0", holding(1, view=1))
    assert coordinator.failure is None
    coordinator.report(1, "i1", holding(1, view=1))
    tells = coordinator.report(2, "i2", holding(1, view=1))
    again = said(tells, 0).view
    assert again is not None
    assert again.round == 1


def test_whoever_reports_from_a_view_that_is_over_is_told_so_each_time() -> None:
    coordinator, view = formed(5)
    coordinator.report(0, "i0", holding(5, view=1))
    for _ in range(2):
        assert said(coordinator.report(2, "i2", inside(view, 5)), 2).over == view.number


# Commits


def test_a_round_is_committed_once_every_member_has_reported_it() -> None:
    coordinator, view = trained(5)
    assert coordinator.committed == 5
    coordinator.report(0, "i0", inside(view, 5, 6))
    assert coordinator.report(1, "i1", inside(view, 5, 6)) == []
    tells = coordinator.report(2, "i2", inside(view, 5, 6))
    assert {said(tells, member).committed for member in EVERYBODY} == {6}


def test_a_report_from_outside_the_view_commits_nothing() -> None:
    coordinator, view = formed(5)
    coordinator.report(0, "i0", inside(view, 5))
    coordinator.report(1, "i1", inside(view, 5))
    coordinator.report(2, "i2", Report(rounds=(5,)))
    assert coordinator.committed == 0


def test_nothing_is_committed_while_a_member_is_not_connected() -> None:
    coordinator, view = trained(5)
    coordinator.disconnected(2, "i2")
    coordinator.report(0, "i0", inside(view, 5, 6))
    coordinator.report(1, "i1", inside(view, 5, 6))
    assert coordinator.committed == 5


# A coordinator that was started anew


def test_a_new_coordinator_learns_the_view_that_stands_and_commits_in_it() -> None:
    _, view = trained(5)
    coordinator, tells = learned(inside(view, 5, 6), inside(view, 5, 6), inside(view, 6))
    assert coordinator.view == view.number
    assert (said(tells, 1).view, said(tells, 1).mark, said(tells, 1).committed) == (None, view.mark, 6)


def test_a_new_coordinator_says_nothing_of_a_view_before_all_have_reported() -> None:
    _, view = trained(5)
    coordinator, tells = learned(inside(view, 6), inside(view, 6))
    assert coordinator.view == coordinator.committed == 0
    assert {(tell.notice.over, tell.notice.mark, tell.notice.committed) for tell in tells} == {(0, "", 0)}


def test_a_new_coordinator_waits_for_a_member_on_its_way_in() -> None:
    _, view = trained(5)
    coordinator, tells = learned(inside(view, 5), Report(rounds=(5,)), inside(view, 5))
    assert said(tells, 0).over == 0
    coordinator.report(1, "i1", inside(view, 5))
    assert coordinator.view == view.number


@pytest.mark.parametrize("report", [holding(5, view=0), Report(view=1, rounds=(5,))])
def test_a_new_coordinator_ends_a_view_that_somebody_is_not_in(report: Report) -> None:
    _, view = trained(5)
    _, tells = learned(inside(view, 5), report)
    assert (said(tells, 0).over, said(tells, 0).reason) == (view.number, "lyon is not in it")


@pytest.mark.parametrize(
    "old", [holding(5, view=1), inside(View(number=1, round=5, members=((1, "i1"),)), 5)]
)
def test_a_session_that_was_silent_since_a_view_began_proves_nothing_against_it(old: Report) -> None:
    view = View(number=2, round=5, members=((0, "i0"), (1, "i1"), (2, "i2")))
    coordinator = Coordinator(NAMES)
    coordinator.connected(1, "i1")
    coordinator.report(1, "i1", old)
    _, tells = asked(inside(view, 5), coordinator=coordinator)
    assert said(tells, 0).over == 0
    assert coordinator.alive(1, "of another session") == []
    assert said(coordinator.alive(1, "i1"), 0).over == 2


def test_of_two_views_of_one_number_neither_stands() -> None:
    view = View(number=4, round=5, members=((0, "i0"), (1, "i1"), (2, "i2")))
    other = View(number=4, round=5, members=((0, "i0"), (1, "old"), (2, "i2")))
    coordinator, tells = learned(inside(view, 5), inside(other, 5), inside(view, 5))
    assert coordinator.view == 0
    assert {said(tells, member).over for member in EVERYBODY} == {4}


# Sessions


def test_nothing_is_said_twice_to_whoever_is_where_it_should_be() -> None:
    coordinator, view = trained(5)
    assert coordinator.report(0, "i0", inside(view, 5)) == []


def test_whatever_a_member_was_told_is_told_again_in_its_next_session() -> None:
    coordinator, view = trained(5)
    coordinator.connected(0, "i0")
    tells = coordinator.report(0, "i0", inside(view, 5))
    assert said(tells, 0).mark == view.mark


def test_what_a_member_said_in_its_last_session_does_not_count_in_the_next() -> None:
    coordinator, _ = asked(holding(4), holding(4))
    coordinator.connected(0, "i0")
    coordinator.connected(2, "i2")
    coordinator.report(2, "i2", holding(4))
    assert coordinator.view == 0
    coordinator.report(0, "i0", holding(4))
    assert coordinator.view == 1


def test_whoever_missed_an_offer_with_its_session_needs_not_answer_it() -> None:
    coordinator, _ = formed(5)
    coordinator.disconnected(0, "i0")
    coordinator.connected(0, "i0")
    coordinator.report(1, "i1", holding(5, view=1))
    coordinator.report(2, "i2", holding(5, view=1))
    coordinator.report(0, "i0", holding(5))
    assert coordinator.view == 2


def test_whoever_still_asks_for_a_view_is_offered_it_again() -> None:
    coordinator, view = formed(5)
    assert said(coordinator.report(0, "i0", holding(5)), 0).view == view


def test_the_end_of_an_old_session_does_not_end_that_of_the_next_process() -> None:
    coordinator, _ = asked(holding(4), holding(4))
    coordinator.report(0, "again", holding(4))
    coordinator.disconnected(0, "i0")
    assert coordinator.present()[0][0] == "again"


def test_a_process_is_told_that_another_of_its_name_has_started_since() -> None:
    coordinator, _ = asked(holding(4))
    coordinator.connected(0, "again")
    tell = coordinator.report(0, "again", holding(4))[0]
    assert tell.incarnation == "i0"
    assert tell.notice.failure is not None
    assert tell.notice.failure.code == 67


@pytest.mark.parametrize("connected", [True, False])
def test_a_process_that_returns_after_its_successor_is_not_heard(connected: bool) -> None:
    coordinator, _ = asked(holding(4))
    coordinator.report(0, "again", holding(4))
    if not connected:
        coordinator.disconnected(0, "again")
    before = coordinator.present()
    coordinator.connected(0, "i0")
    [tell] = coordinator.report(0, "i0", holding(4))
    assert tell.incarnation == "i0"
    assert tell.notice.failure is not None
    assert tell.notice.failure.code == 67
    assert coordinator.present() == before


def test_a_late_first_report_of_the_process_that_came_first_does_not_count() -> None:
    coordinator = Coordinator(NAMES)
    coordinator.connected(0, "old")
    coordinator.connected(0, "new")
    coordinator.report(0, "new", holding(4))
    coordinator.report(0, "old", holding(4))
    assert coordinator.present()[0][0] == "new"


# The end


def test_whoever_returns_to_a_finished_run_is_told_so() -> None:
    coordinator, _ = asked(holding(9, view=3, finished=9))
    coordinator.disconnected(0, "i0")
    tells = coordinator.report(1, "i1", holding(9, view=3, committed=9))
    assert said(tells, 1).finished == 9


def test_a_failure_of_one_ends_the_run_for_all() -> None:
    coordinator, view = trained(5)
    failure = Failure(code=69, origin=1, reason="diverged")
    report = Report(view=1, mark=view.mark, ready=True, rounds=(5,), failure=failure)
    tells = coordinator.report(1, "i1", report)
    assert {said(tells, member).failure for member in EVERYBODY} == {failure}


def test_a_stranger_agreement_ends_a_run_that_has_not_begun() -> None:
    coordinator, _ = asked(holding(), holding())
    tells = coordinator.refused(2, 67, "porto holds another agreement")
    failure = said(tells, 0).failure
    assert failure == Failure(code=67, origin=2, reason="porto holds another agreement")


def test_a_stranger_agreement_is_none_of_the_business_of_a_view_that_stands() -> None:
    coordinator, view = trained(5)
    assert coordinator.refused(2, 67, "porto holds another agreement") == []
    restarted, _ = learned(inside(view, 5))
    assert restarted.refused(2, 67, "porto holds another agreement") == []


def test_the_newest_committed_round_is_the_newest_that_anybody_knows_of() -> None:
    coordinator, _ = asked(holding(4, committed=4), holding(4, 5, committed=3))
    assert coordinator.round == 4


def test_whoever_comes_late_is_told_why_one_that_is_missing_has_ended() -> None:
    coordinator = Coordinator(NAMES)
    coordinator.report(0, "i0", Report(failure=Failure(code=66, origin=0, reason="no space left")))
    coordinator.disconnected(0, "i0")
    tells = coordinator.report(1, "i1", holding())
    assert said(tells, 1).failure is None, "it may be a new attempt"
    assert said(tells, 1).missing[0] == (0, "is not connected: it ended, no space left")
    tells = coordinator.report(0, "j0", Report())
    assert said(tells, 1).missing[0] == (0, "is loading")
