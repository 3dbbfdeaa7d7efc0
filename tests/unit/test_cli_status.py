"""What `pcmoe status` and `watch` say of a consortium, from its object alone."""

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.unit.remotely import condition, consortium

from pcmoe_operator.reasons import Reason
from pcmoe_operator.remote import tables
from pcmoe_operator.remote.following import Told
from pcmoe_operator.remote.live import LiveView, Watched, ended
from pcmoe_operator.remote.session import NotThereError
from pcmoe_operator.remote.summary import age, details, news, summary
from pcmoe_operator.remote.switching import foretold, settled
from pcmoe_operator.remote.verdict import verdict_of

ENDING = (
    Reason.ConfigurationRefused, Reason.DatasetUnreadable, Reason.ResourceMissing, Reason.IdentityRefused,
    Reason.ProtocolBroken, Reason.Diverged, Reason.StorageFailed, Reason.InternalError, Reason.BackoffLimitExceeded,
    Reason.CrashLoop, Reason.JobFailed, Reason.NodeError,
)  # fmt: skip
"""Reasons of the condition Failed."""
UNSAID = (
    Reason.AllScheduled, Reason.InView, Reason.NotSuspended, Reason.RoundsLeft, Reason.NoFailure, Reason.RunOver,
    Reason.Accepted,
)  # fmt: skip
"""Reasons of conditions that never decide: another says what counts."""


def deciding(reason: Reason, message: str) -> dict[str, str]:
    """The condition that has a reason when it is what counts."""
    if reason in (Reason.InvalidSpec, Reason.CRDTooOld):
        return condition("Accepted", "False", reason, message)
    if reason is Reason.LastRoundCommitted:
        return condition("Completed", "True", reason, message)
    if reason is Reason.Suspending:
        return condition("Suspended", "False", reason, message)
    if reason in ENDING:
        return condition("Failed", "True", reason, message)
    on_the_way = reason in (Reason.Starting, Reason.Loading, Reason.Training)
    return condition("Progressing", "True" if on_the_way else "False", reason, message)


@pytest.mark.parametrize("message", ["", "lyon: somebody's own words.", "as the operator writes it"])
@pytest.mark.parametrize(
    "reason", [each for each in Reason if each not in UNSAID], ids=lambda each: each.name
)
def test_the_first_line_says_what_is_wrong_and_what_to_do(reason: Reason, message: str) -> None:
    if message.startswith("as"):
        message = f"lyon: {reason.meaning}: the scheduler's words; {reason.remedy}".rstrip("; ")
    line = tables.headline(details(consortium(deciding(reason, message)), []))
    assert line.startswith("hospitals: ")
    assert line.count(reason.meaning) == 1
    assert not reason.remedy or line.count(reason.remedy) == 1
    assert message.rstrip(".") in line


@pytest.mark.parametrize(
    "reason", [each for each in Reason if each not in UNSAID], ids=lambda each: each.name
)
def test_whoever_has_to_do_something_is_told_that_it_is_wrong(reason: Reason) -> None:
    level = verdict_of(consortium(deciding(reason, ""))).level
    nothing = not reason.remedy or reason.remedy.startswith(("nothing:", "nothing,"))
    if reason in (Reason.Training, Reason.LastRoundCommitted):
        assert level == "fine"
    elif reason is Reason.SuspendRequested or (nothing and reason not in ENDING):
        assert level == "waiting"
    else:
        assert level == "wrong"


def test_the_command_that_resumes_is_named() -> None:
    line = tables.headline(
        details(consortium(condition("Progressing", "False", Reason.SuspendRequested)), [])
    )
    assert "pcmoe resume hospitals" in line


def test_one_that_no_operator_has_seen_is_wrong() -> None:
    found = consortium()
    found["status"] = {}
    assert verdict_of(found).level == "wrong"
    assert "no operator has looked at it" in tables.headline(details(found, []))
    assert summary(found)["rounds"] == 20


def test_one_that_another_controller_looks_after_is_not_judged() -> None:
    found = consortium(condition("Failed", "True", Reason.Diverged), spec={"managedBy": "example.org/other"})
    assert verdict_of(found).sentence == "example.org/other looks after it, as spec.managedBy says"


def test_a_refused_object_is_wrong_though_rounds_go_on() -> None:
    words = f"rounds go on ({Reason.ApplyRefused.meaning}: a Service: no)"
    found = verdict_of(consortium(condition("Progressing", "True", Reason.Training, words)))
    assert found.level == "wrong"
    assert found.sentence == f"{words}; {Reason.ApplyRefused.remedy}"


def test_a_manifest_newer_than_its_status_is_told() -> None:
    found = consortium()
    found["metadata"]["generation"] = 2
    assert "not looked at the newest manifest" in tables.headline(details(found, []))


def test_a_new_attempt_is_not_over_because_the_last_one_failed() -> None:
    found = consortium(condition("Failed", "True", Reason.Diverged), spec={"attempt": 2})
    assert ended(found) is None
    found["spec"]["attempt"] = 1
    assert ended(found) == 1
    assert ended(consortium(condition("Completed", "True", Reason.LastRoundCommitted))) == 0


def test_text_from_elsewhere_is_one_printable_line() -> None:
    found = consortium(condition("Failed", "True", Reason.Diverged, "lyon: \x1b[31mred\nand more"))
    line = tables.headline(details(found, []))
    assert "\x1b" not in line
    assert "\n" not in line


def test_one_line_each_with_what_is_wrong() -> None:
    found = [
        summary(consortium(name="ghent")),
        summary(
            consortium(condition("Failed", "True", Reason.Diverged), name="porto", state="Failed", loss="nan")
        ),
    ]
    lines = tables.aligned(*tables.consortia_table(found, everywhere=True))
    assert [line.split()[:6] for line in lines] == [
        ["NAMESPACE", "NAME", "STATE", "ROUND", "READY", "LOSS"],
        ["hospital", "ghent", "Running", "12/20", "2/2", "1.68"],
        ["hospital", "porto", "Failed", "12/20", "2/2", lines[2].split()[5]],
    ]
    assert lines[1].split()[6:] == [age(found[0]["created"], datetime.now(UTC))]
    assert Reason.Diverged.remedy in lines[2]
    assert found[1]["loss"] is None


def test_columns_line_up_and_lines_have_no_end_of_blanks() -> None:
    lines = tables.aligned(["A", "LONG"], [["wide cell", "x"], ["y", ""]])
    assert lines == ["A           LONG", "wide cell   x", "y"]


def test_on_a_terminal_the_last_column_is_cut_off_and_a_message_goes_on_below() -> None:
    words = "six or seven words that need more room"
    assert tables.aligned(["NAME", "WHAT"], [["x", words]], 30) == [
        "NAME   WHAT",
        "x      six or seven words tha…",
    ]
    folded = tables.aligned(["NAME", "MESSAGE"], [["x", words]], 30)
    assert folded == ["NAME   MESSAGE", "x      six or seven words that", "       need more room"]


def test_colours_take_no_room() -> None:
    lines = tables.aligned(["NAME", "STATE", "AGE"], [["x", "Failed", "5m"]], 80, colour=True)
    assert lines[1] == "x      \x1b[31mFailed\x1b[0m   5m"


def test_ages_are_those_of_kubectl() -> None:
    now = datetime(2026, 1, 3, 12, tzinfo=UTC)
    moments = {
        "2026-01-03T11:59:18Z": "42s",
        "2026-01-03T11:55:00Z": "5m",
        "2026-01-03T09:00:00Z": "3h",
        "2025-12-22T12:00:00Z": "12d",
        "2026-01-03T12:00:05Z": "0s",
        "": "",
        "yesterday": "",
    }
    assert {moment: age(moment, now) for moment in moments} == moments


# What is new


def test_what_is_new_is_told_once() -> None:
    before = details(consortium(), [])
    assert news(before, details(consortium(loss="1.5"), [])) == []
    later = consortium(condition("Progressing", "False", Reason.Killed, "lyon: its node died by a signal: 9"))
    later["status"]["participants"][1] |= {"state": "Loading", "restarts": 1}
    assert news(before, details(later, [])) == [
        f"hospitals: lyon: its node died by a signal: 9; {Reason.Killed.remedy}",
        "lyon: Running → Loading",
        "lyon: started again, restart 1",
    ]


def test_what_is_seen_first_is_told_whole() -> None:
    assert news(None, details(consortium(), [])) == [
        "hospitals: Running, round 12 of 20, 2 of 2 ready, loss 1.68",
        "hospitals: rounds go on",
    ]


# Suspend and resume


@pytest.mark.parametrize("suspend", [True, False])
def test_what_suspending_and_resuming_does_is_foretold(suspend: bool) -> None:
    line = foretold(consortium(), suspend=suspend, changed=True)
    assert "round 12 of 20" in line
    assert ("GPUs" in line) == suspend
    assert foretold(consortium(), suspend=suspend, changed=False).startswith("hospitals: spec.suspend is ")


def test_who_resumes_one_that_has_failed_is_told_to_raise_the_attempt() -> None:
    line = foretold(consortium(condition("Failed", "True", Reason.Diverged)), suspend=False, changed=True)
    assert Reason.Diverged.remedy in line
    done = consortium(condition("Completed", "True", Reason.LastRoundCommitted))
    assert "all 20 rounds are done" in foretold(done, suspend=True, changed=True)


def test_a_status_from_before_the_change_settles_nothing() -> None:
    suspended = consortium(condition("Suspended", "True", Reason.SuspendRequested))
    assert settled(2, suspend=True)(suspended) is None
    suspended["status"]["observedGeneration"] = 2
    assert settled(2, suspend=True)(suspended) == 0
    assert settled(2, suspend=False)(suspended) is None
    suspended["status"]["conditions"].append(condition("Ready", "True", Reason.InView))
    assert settled(2, suspend=False)(suspended) == 0


def test_waiting_ends_when_the_consortium_fails() -> None:
    assert settled(1, suspend=False)(consortium(condition("Failed", "True", Reason.Diverged))) == 1


# As it goes on


def told(resource: str, of: dict[str, Any] | None = None, **more: Any) -> Told:
    return Told(resource=resource, object=of, **more)


def event(name: str, message: str, moment: str) -> dict[str, Any]:
    return {
        "metadata": {"uid": name, "resourceVersion": moment},
        "type": "Warning",
        "reason": "Killed",
        "message": message,
        "lastTimestamp": moment,
    }


def test_events_from_before_are_shown_but_are_no_news() -> None:
    watched = Watched("hospitals")
    watched.take(told("pcmoeconsortia", consortium()))
    assert watched.take(told("events", event("old", "long ago", "2026-01-01T12:00:00Z"))) == []
    watched.take(told("events"))
    new = event("new", "just now", "2026-01-01T13:00:00Z")
    assert watched.take(told("events", new)) == ["Warning Killed: just now"]
    assert watched.shown is not None
    assert [each["message"] for each in watched.shown["events"]] == ["long ago", "just now"]


def test_a_server_that_goes_away_is_told_once_and_so_is_its_return() -> None:
    watched = Watched("hospitals")
    watched.take(told("pcmoeconsortia", consortium()))
    lost = [watched.take(told(each, lost="it can't be reached")) for each in ("pcmoeconsortia", "events")]
    assert lost == [["it can't be reached; it is tried again every second"], []]
    assert watched.lost == "it can't be reached"
    again = [watched.take(told(each)) for each in ("pcmoeconsortia", "events")]
    assert again == [["the API server answers again"], []]
    assert watched.lost == ""


def test_one_that_is_deleted_ends_the_watch() -> None:
    watched = Watched("hospitals")
    with pytest.raises(NotThereError, match="hospitals was deleted"):
        watched.take(told("pcmoeconsortia", consortium(), gone=True))


def test_the_live_table_says_that_the_server_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveView() as view:
        view.update(details(consortium(), []), [], "it can't be reached")
    shown = capsys.readouterr().out
    assert "hospitals: rounds go on; nothing is wrong" in shown
    assert "it can't be reached; as it was before:" in shown
    assert "TRAINING" in shown
