"""From what was observed to `.status`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import pytest
from tests.builders import consortium
from tests.unit.test_crd import SCHEMA, json_schema

from pcmoe_operator.agreement import digest
from pcmoe_operator.answers import CoordinatorSeen, MemberSeen, NodeSeen
from pcmoe_operator.conditions import Status, changed, ended, rejected, status_of
from pcmoe_operator.diagnosis import Trouble
from pcmoe_operator.errors import Fault
from pcmoe_operator.gang import Release, Stage
from pcmoe_operator.observe import ConditionSeen, JobSeen, ParticipantSeen, PodSeen, Seen
from pcmoe_operator.reasons import Reason
from pcmoe_operator.standing import Intent, Observation

NOW = datetime(2026, 8, 1, 12, 0, tzinfo=UTC)
ROUNDS = 20
QUOTA = "exceeded quota: gpus, requested: requests.nvidia.com/gpu=1"
SCHEDULER = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
TYPES = ["Accepted", "Suspended", "Scheduled", "Ready", "Progressing", "Completed", "Failed"]


def node(phase: str = "TRAINING", **fields: Any) -> NodeSeen:
    empty: dict[str, Any] = {
        "step": 0,
        "train_loss": None,
        "held_out_loss": None,
        "waiting_for": "",
        "error": "",
    }
    return NodeSeen(
        **{**empty, "phase": phase, "round": 0, "rounds": ROUNDS, "view": 0, "committed": 0, **fields}
    )


def pod(name: str, **fields: Any) -> PodSeen:
    running: dict[str, Any] = {
        "phase": "Running",
        "node": "gpu-1",
        "ready": True,
        "restarts": 0,
        "trouble": None,
        "going": False,
        "unplaced_since": "",
        "placed_since": "",
    }
    ended: dict[str, Any] = {"exit_code": None, "ended_at": "", "last": None, "crash": None}
    return PodSeen(**{"participant": name, "attempt": 1, "name": "p", **running, **ended, **fields})


def job(name: str, failure: tuple[str, str] | None = None, **fields: Any) -> JobSeen:
    """`failure`: reason and message of its condition Failed."""
    why = []
    if failure:
        at = "2026-08-01T12:06:00Z"
        why.append(
            ConditionSeen(type="Failed", status="True", reason=failure[0], message=failure[1], since=at)
        )
    empty: dict[str, Any] = {"suspended": False, "active": 1, "failed": 0, "succeeded": 0}
    empty |= {"refusal": None, "refused_since": "", "started": ""}
    return JobSeen(**{"participant": name, "conditions": tuple(why), **empty, **fields})


def there(name: str, **fields: Any) -> ParticipantSeen:
    return ParticipantSeen(job=job(name), pod=pod(name, **fields))


def pending(name: str, reason: Reason | None = None, words: str = "", machine: str = "") -> ParticipantSeen:
    trouble = Trouble(reason=reason, message=words) if reason else None
    return there(name, phase="Pending", ready=False, node=machine, trouble=trouble)


def failed(name: str, code: int, words: str, at: str = "2026-08-01T12:05:00Z") -> ParticipantSeen:
    """A participant whose Job has failed by its policy."""
    policy = ("PodFailurePolicy", f"Container node for pod training/x failed with exit code {code} matching")
    last = node("FAILED", error=words, committed=7, round=7)
    trouble = Trouble(reason=Reason.NodeError, message=words)
    gone = pod(name, phase="Failed", ready=False, exit_code=code, ended_at=at, last=last, trouble=trouble)
    return ParticipantSeen(job=job(name, policy, failed=1), pod=gone)


def coordinator(
    state: str = "RUNNING", round_: int = 0, view: int = 1, members: Mapping[str, str] | None = None
) -> CoordinatorSeen:
    """`members`: their phases; ABSENT: not connected."""
    listed = [MemberSeen(name=n, connected=p != "ABSENT", phase=p) for n, p in (members or {}).items()]
    return CoordinatorSeen(state=state, view=view, round=round_, reason="", members=tuple(listed), error="")


def observation(
    seen: Mapping[str, ParticipantSeen],
    coordinates: CoordinatorSeen | None = None,
    nodes: Mapping[str, NodeSeen] | None = None,
    intent: Intent = Intent.RUN,
    release: Release | None = None,
    holding: tuple[str, ...] = (),
    **spec: Any,
) -> Observation:
    changes = {"agreement.training.rounds": ROUNDS, **spec}
    return Observation(
        generation=4,
        consortium=consortium(3, changes),
        plan_digest="sha256:" + "1" * 64,
        seen=Seen(participants=seen),
        coordinator=coordinates,
        nodes=nodes or {},
        intent=intent,
        release=release,
        restarts_allowed=3,
        holding=holding,
    )


def training(round_: int = 12, loss: float | None = 1.7, held_out: float | None = 1.68) -> Observation:
    fields: dict[str, Any] = {
        "round": round_,
        "view": 1,
        "train_loss": loss,
        "held_out_loss": held_out,
        "committed": round_ - 1,
    }
    names = ("berlin", "lyon")
    return observation(
        {name: there(name) for name in names},
        coordinator(round_=round_),
        {name: node(**fields) for name in names},
    )


def conditions(status: Status) -> dict[str, dict[str, Any]]:
    return {each["type"]: each for each in status["conditions"]}


def truths(status: Status) -> dict[str, tuple[str, str]]:
    return {kind: (each["status"], each["reason"]) for kind, each in conditions(status).items()}


def entry(status: Status, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in status["participants"] if each["name"] == name)
    return found


def valid(status: Status) -> Status:
    """The same, if the CRD takes it."""
    jsonschema.Draft202012Validator(json_schema(SCHEMA["properties"]["status"])).validate(status)
    return status


def made(given: Observation, previous: Status | None = None, now: datetime = NOW) -> Status:
    return valid(status_of(previous, given, now))


def test_a_run_that_trains_is_running_ready_and_progressing() -> None:
    given = training()
    status = made(given)
    assert (status["state"], status["round"], status["ready"], status["loss"]) == (
        "Running",
        "12/20",
        "2/2",
        "1.68",
    )
    assert (status["observedGeneration"], status["attempt"]) == (4, 1)
    assert status["agreement"] == {"active": digest(given.consortium), "plan": "sha256:" + "1" * 64}
    assert [each["type"] for each in status["conditions"]] == TYPES
    assert truths(status) == {
        "Accepted": ("True", "Accepted"),
        "Suspended": ("False", "NotSuspended"),
        "Scheduled": ("True", "AllScheduled"),
        "Ready": ("True", "InView"),
        "Progressing": ("True", "Training"),
        "Completed": ("False", "RoundsLeft"),
        "Failed": ("False", "NoFailure"),
    }
    assert entry(status, "lyon") == {
        "name": "lyon",
        "state": "Running",
        "round": 12,
        "phase": "TRAINING",
        "restarts": 0,
        "node": "gpu-1",
    }


def test_the_loss_is_of_training_where_not_all_have_a_held_out_one_and_absent_where_it_is_unknown() -> None:
    assert made(training(held_out=None, loss=0.5))["loss"] == "0.500"
    assert made(training(loss=123.4, held_out=None))["loss"] == "123"
    assert "loss" not in made(training(loss=None, held_out=None))
    assert "loss" not in made(observation({"berlin": pending("berlin")}))


def test_the_loss_stays_that_of_all_while_one_of_them_is_silent() -> None:
    before = made(training(held_out=2.0))
    given = training(held_out=1.0)
    silent = replace(given, nodes={"berlin": given.nodes["berlin"]})
    assert status_of(before, silent, NOW)["loss"] == "2.00"
    assert "loss" not in made(silent)


def test_a_pod_without_a_machine_is_named_with_the_schedulers_words_and_what_to_do() -> None:
    seen = {"berlin": there("berlin", ready=False), "lyon": pending("lyon", Reason.Unschedulable, SCHEDULER)}
    status = made(observation(seen))
    assert status["state"] == "Pending"
    assert truths(status)["Scheduled"] == ("False", "Unschedulable")
    assert truths(status)["Progressing"] == truths(status)["Ready"] == ("False", "Unschedulable")
    assert conditions(status)["Scheduled"]["message"] == (
        "lyon: no machine has room for its pod: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu; "
        "add a machine, free one, or ask for less in spec.local"
    )
    assert (entry(status, "lyon")["reason"], entry(status, "lyon")["message"]) == ("Unschedulable", SCHEDULER)


def test_a_pod_that_could_not_be_made_is_pending_for_its_quota() -> None:
    refusal = Trouble(reason=Reason.QuotaExceeded, message=QUOTA)
    status = made(observation({"berlin": ParticipantSeen(job=job("berlin", refusal=refusal), pod=None)}))
    assert truths(status)["Scheduled"] == ("False", "QuotaExceeded")
    assert entry(status, "berlin")["reason"] == "QuotaExceeded"


def test_pods_on_their_way_and_nodes_that_load_are_progress() -> None:
    starting = made(observation({"berlin": ParticipantSeen(job=None, pod=None), "lyon": pending("lyon")}))
    assert starting["state"] == "Pending"
    assert truths(starting)["Scheduled"] == ("False", "Starting")
    assert truths(starting)["Progressing"] == ("True", "Starting")
    loading = made(observation({"berlin": there("berlin", ready=False)}, nodes={"berlin": node("LOADING")}))
    assert loading["state"] == "Loading"
    assert truths(loading)["Ready"] == ("False", "Loading")
    assert truths(loading)["Progressing"] == ("True", "Loading")


def test_a_participant_elsewhere_that_is_missing_is_named() -> None:
    seen, nodes = {"berlin": there("berlin", ready=False)}, {"berlin": node("WAITING", view=2)}
    forming = coordinator(
        "FORMING", 7, 0, {"berlin": "WAITING", "lyon": "ABSENT", "oslo": "LOADING", "evil": "ABSENT"}
    )
    status = made(observation(seen, forming, nodes))
    assert (status["state"], status["round"]) == ("Waiting", "7/20")
    assert truths(status)["Progressing"] == ("False", "WaitingForParticipants")
    assert "not connected: lyon; loading: oslo;" in conditions(status)["Progressing"]["message"]


def test_where_the_coordinator_is_elsewhere_the_nodes_say_who_is_missing() -> None:
    nodes = {"berlin": node("WAITING", waiting_for="oslo is not connected", committed=5)}
    status = made(observation({"berlin": there("berlin", ready=False)}, None, nodes))
    assert (status["state"], status["round"]) == ("Waiting", "5/20")
    assert entry(status, "berlin")["message"] == "oslo is not connected"
    assert "oslo is not connected" in conditions(status)["Ready"]["message"]


def test_who_lost_a_peer_is_not_the_trouble_that_is_named() -> None:
    seen = {
        "berlin": there("berlin", ready=False, trouble=Trouble(reason=Reason.PeerLost, message="lost lyon")),
        "lyon": there("lyon", ready=False, restarts=3, trouble=Trouble(reason=Reason.OutOfMemory)),
    }
    status = made(observation(seen))
    assert truths(status)["Progressing"] == ("False", "OutOfMemory")
    assert conditions(status)["Progressing"]["message"].startswith("lyon: its node ran out of memory;")
    assert conditions(status)["Progressing"]["message"].endswith("(in trouble too: berlin)")
    assert entry(status, "lyon")["restarts"] == 3


def test_pods_that_are_ready_while_nobody_answers_are_unknown_progress() -> None:
    status = made(observation({"berlin": there("berlin")}))
    assert truths(status)["Progressing"] == ("Unknown", "StatusUnavailable")
    assert truths(status)["Ready"] == ("True", "InView")


def test_no_participant_here_is_said() -> None:
    status = made(observation({}))
    assert (status["state"], status["ready"]) == ("Pending", "0/0")
    assert truths(status)["Scheduled"] == ("False", "NothingHere")


def test_suspending_takes_until_the_last_pod_is_gone() -> None:
    stopped = Trouble(reason=Reason.Stopped)
    going = {"berlin": there("berlin", ready=False, trouble=stopped)}
    status = made(observation(going, intent=Intent.SUSPEND, holding=("berlin", "paris")))
    assert status["state"] == "Suspended" and "berlin, paris: " in conditions(status)["Suspended"]["message"]
    assert truths(status)["Suspended"] == ("False", "Suspending")
    assert "reason" not in entry(status, "berlin")
    gone = {"berlin": ParticipantSeen(job=job("berlin", suspended=True), pod=None)}
    status = made(observation(gone, intent=Intent.SUSPEND), status)
    assert truths(status)["Suspended"] == ("True", "SuspendRequested")
    assert truths(status)["Scheduled"] == ("False", "SuspendRequested")
    assert entry(status, "berlin")["state"] == "Suspended"


def test_gpus_that_were_given_back_are_told_with_what_is_waited_for() -> None:
    seen = {
        "berlin": ParticipantSeen(job=job("berlin", suspended=True), pod=None),
        "lyon": pending("lyon", Reason.Unschedulable, SCHEDULER),
    }
    gave = Release(stage=Stage.GIVEN_BACK, since=NOW, tries=2)
    status = made(observation(seen, intent=Intent.YIELD, release=gave))
    assert status["release"] == {"state": "GivenBack", "since": "2026-08-01T12:00:00.000Z", "tries": 2}
    assert status["state"] == "Pending"
    assert truths(status)["Suspended"] == ("False", "GpusReleased")
    assert truths(status)["Scheduled"] == ("False", "GpusReleased")
    assert "lyon: 0/3 nodes are available" in conditions(status)["Scheduled"]["message"]
    # In its rest no pod is left, and no scheduler says anything.
    rests = {name: ParticipantSeen(job=job(name, suspended=True), pod=None) for name in seen}
    later = made(observation(rests, intent=Intent.YIELD, release=gave), status)
    assert "lyon: 0/3 nodes are available" in conditions(later)["Scheduled"]["message"]
    assert (entry(later, "lyon")["state"], entry(later, "lyon")["reason"]) == ("Suspended", "Unschedulable")
    assert "reason" not in entry(later, "berlin")
    assert "release" not in made(observation(rests, intent=Intent.SUSPEND), later)
    assert "release" not in rejected(later, 5, [], NOW)


def test_one_whose_turn_has_not_come_says_so() -> None:
    queued = Release(stage=Stage.QUEUED, since=NOW, tries=0)
    seen = {"berlin": ParticipantSeen(job=job("berlin", suspended=True), pod=None)}
    status = made(observation(seen, intent=Intent.YIELD, release=queued))
    assert status["state"] == "Pending"
    for kind in ("Suspended", "Scheduled", "Ready", "Progressing"):
        assert truths(status)[kind] == ("False", "Queued")


OOM = Trouble(reason=Reason.OutOfMemory, message="exit code 137 (OOMKilled)")


def crashed(at: int, why: Trouble | None = OOM) -> ParticipantSeen:
    """A participant whose container ended in a certain second, and is started again."""
    when = f"2026-08-01T12:05:{at:02}Z"
    return there("lyon", ready=False, exit_code=137, ended_at=when, crash=why, trouble=why, restarts=at)


def crash_loop(*seen: ParticipantSeen, status: Status | None = None, round_: int = 7) -> Status:
    """What becomes of a run with these looks; three crashes are too many."""
    for each in seen:
        both = {"berlin": there("berlin"), "lyon": each}
        status = made(observation(both, coordinator(round_=round_)), status)
    assert status is not None
    return status


def test_a_participant_that_crashes_again_and_again_without_a_round_in_between_ends_the_attempt() -> None:
    status = crash_loop(crashed(1), crashed(1), crashed(2), there("lyon"), crashed(2))
    assert (status["state"], entry(status, "lyon")["crashes"]) == ("Loading", 2)
    over = crash_loop(crashed(3), status=status)
    failed = conditions(over)["Failed"]
    assert (over["state"], failed["status"], failed["reason"]) == ("Failed", "True", "CrashLoop")
    assert failed["message"] == (
        "lyon: it ended again and again, and no round was committed in between: 3 times since round 7 was committed; "
        "the last time its node ran out of memory: exit code 137 (OOMKilled); give it more in template.resources, or "
        "use fewer inFlight, shorter sequences or gradientCheckpointing; mend what is named, then raise spec.attempt"
    )
    assert (entry(over, "lyon")["state"], entry(over, "lyon")["reason"]) == ("Failed", "OutOfMemory")
    gone = ParticipantSeen(job=job("lyon", suspended=True), pod=None)
    later = crash_loop(crashed(3), gone, status=over)
    assert entry(later, "lyon") == entry(over, "lyon")
    assert conditions(later)["Failed"]["message"] == failed["message"]
    assert ended(later, 1) == "Failed"


def test_a_committed_round_or_a_new_attempt_begins_the_count_of_crashes_anew() -> None:
    status = crash_loop(crashed(1), crashed(2))
    assert entry(crash_loop(crashed(2), status=status, round_=8), "lyon").get("crashes") is None
    assert entry(crash_loop(crashed(3), status=status, round_=8), "lyon")["crashes"] == 1
    both = {"berlin": there("berlin"), "lyon": crashed(3)}
    anew = made(observation(both, coordinator(round_=7), attempt=2), status)
    assert entry(anew, "lyon")["crashes"] == 1


def test_a_crash_that_was_counted_stays_so_while_the_pod_is_away() -> None:
    away = ParticipantSeen(job=job("lyon"), pod=None)
    assert entry(crash_loop(crashed(1), away, crashed(1)), "lyon")["crashes"] == 1


def test_an_end_that_is_no_fault_of_its_own_is_not_counted() -> None:
    lost = there("lyon", ready=False, exit_code=75, ended_at="2026-08-01T12:05:09Z", crash=None)
    assert "crashes" not in entry(crash_loop(lost, lost, lost, lost), "lyon")


def test_a_run_is_completed_by_its_last_commit_and_not_by_a_job() -> None:
    succeeded = ParticipantSeen(job=job("berlin", succeeded=1, active=0), pod=None)
    assert made(observation({"berlin": succeeded}, coordinator(round_=19)))["state"] != "Completed"
    for given in (
        observation({"berlin": there("berlin")}, coordinator(round_=20)),
        observation({"berlin": there("berlin")}, None, {"berlin": node("COMMITTING", committed=20)}),
        observation({"berlin": there("berlin", last=node("DONE", committed=20))}),
        observation({"berlin": there("berlin", last=node("DONE", round=20))}),
    ):
        status = made(given)
        assert (status["state"], status["round"]) == ("Completed", "20/20")
        assert truths(status)["Completed"] == ("True", "LastRoundCommitted")
        assert truths(status)["Progressing"] == ("False", "RunOver")
    one = {"berlin": there("berlin", last=node("DONE", committed=20)), "lyon": there("lyon")}
    assert made(observation(one))["state"] != "Completed"


def test_an_end_stays_whatever_is_observed_later_until_attempt_rises() -> None:
    completed = made(
        observation({"berlin": there("berlin")}, coordinator(round_=20), {"berlin": node(held_out_loss=2.0)})
    )
    later = made(
        observation({"berlin": ParticipantSeen(job=None, pod=None)}), completed, NOW + timedelta(days=1)
    )
    assert (later["state"], later["round"], later["loss"]) == ("Completed", "20/20", "2.00")
    assert conditions(later)["Completed"] == conditions(completed)["Completed"]
    assert entry(later, "berlin") == {**entry(completed, "berlin"), "state": "Completed"}
    bad = made(observation({"berlin": failed("berlin", 65, "DataError: record 12")}))
    assert made(training(), bad)["state"] == "Failed"
    assert (ended(bad, 1), ended(bad, 2), ended(completed, 1), ended(None, 1)) == (
        "Failed",
        None,
        "Completed",
        None,
    )
    again = made(observation({"berlin": pending("berlin")}, attempt=2), bad)
    assert (again["state"], again["attempt"], again["round"]) == ("Pending", 2, "7/20")
    assert truths(again)["Failed"] == ("False", "NoFailure")


RELAY = "ProtocolError: lyon ended the run: DataError: train.jsonl: record 12: no text"


def test_a_failure_is_about_the_first_cause_and_not_about_messengers() -> None:
    seen = {
        "berlin": failed("berlin", 65, RELAY, at="2026-08-01T12:04:00Z"),
        "lyon": failed("lyon", 65, "DataError: train.jsonl: record 12: no text"),
        "oslo": failed("oslo", 75, "PeerLostError: lost lyon", at="2026-08-01T12:03:00Z"),
    }
    status = made(observation(seen))
    assert status["state"] == "Failed"
    assert truths(status)["Failed"] == ("True", "DatasetUnreadable")
    assert conditions(status)["Failed"]["message"] == (
        "lyon: its dataset can't be read: DataError: train.jsonl: record 12: no text; "
        "mend the record or path, then raise spec.attempt"
    )


def test_a_failure_elsewhere_is_told_by_who_heard_of_it() -> None:
    status = made(observation({"berlin": failed("berlin", 65, RELAY)}))
    assert conditions(status)["Failed"]["message"].startswith("lyon: its dataset can't be read: DataError:")
    assert "(as berlin was told)" in conditions(status)["Failed"]["message"]
    nobody = made(observation({"berlin": failed("berlin", 65, RELAY.replace("lyon", "evil"))}))
    assert conditions(nobody)["Failed"]["message"].startswith("berlin: ")


def test_of_two_causes_the_earlier_one_counts_and_pods_may_be_gone() -> None:
    late = failed("berlin", 66, "ResourceError: disk full", at="2026-08-01T12:09:00Z")
    early = failed("oslo", 69, "DivergedError: ten steps", at="2026-08-01T12:01:00Z")
    assert truths(made(observation({"berlin": late, "oslo": early})))["Failed"] == ("True", "Diverged")
    bare = ParticipantSeen(job=early.job, pod=None)
    status = made(observation({"oslo": bare}))
    assert truths(status)["Failed"] == ("True", "Diverged")
    assert "failed with exit code 69" in conditions(status)["Failed"]["message"]


def test_a_job_that_was_tried_too_often_has_failed_for_good() -> None:
    limit = ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
    seen = ParticipantSeen(job=job("berlin", limit, failed=7), pod=None)
    status = made(observation({"berlin": seen}))
    assert truths(status)["Failed"] == ("True", "BackoffLimitExceeded")
    assert entry(status, "berlin")["restarts"] == 6


def test_a_failed_pod_alone_is_no_failure_of_the_run() -> None:
    one = failed("berlin", 65, "DataError: x")
    status = made(observation({"berlin": ParticipantSeen(job=job("berlin"), pod=one.pod)}))
    assert truths(status)["Failed"] == ("False", "NoFailure")


def test_after_a_failure_the_others_are_stopped_and_the_culprits_entry_stays() -> None:
    seen = {"berlin": there("berlin"), "lyon": failed("lyon", 65, "DataError: x")}
    before = made(observation(seen))
    nothing = {name: ParticipantSeen(job=None, pod=None) for name in seen}
    after = made(observation(nothing), before)
    assert entry(after, "berlin")["state"] == "Stopped"
    assert entry(after, "lyon") == entry(before, "lyon")


def test_a_transition_has_the_time_at_which_its_status_changed() -> None:
    first = made(observation({"berlin": pending("berlin")}))
    second = made(observation({"berlin": there("berlin", ready=False)}), first, NOW + timedelta(seconds=60))
    third = made(training(), second, NOW + timedelta(seconds=120))
    times = [conditions(each)["Ready"]["lastTransitionTime"] for each in (first, second, third)]
    assert times == ["2026-08-01T12:00:00Z", "2026-08-01T12:00:00Z", "2026-08-01T12:02:00Z"]
    assert conditions(third)["Accepted"]["lastTransitionTime"] == "2026-08-01T12:00:00Z"


def test_a_round_never_goes_back_while_the_coordinator_starts_anew() -> None:
    before = made(training())
    assert (
        made(observation({"berlin": there("berlin")}, coordinator("FORMING", 0, 0)), before)["round"]
        == "12/20"
    )
    for odd in ("x/20", "9" * 30 + "/20", 7, None):
        assert made(training(), {**before, "round": odd})["round"] == "12/20"


def test_progress_alone_is_written_every_so_often_and_anything_else_at_once() -> None:
    before = made(training(12))
    more = training(13, 1.6, 1.5)
    for seconds, expected in ((1, False), (4.9, False), (5, True), (-3600, True)):
        now = NOW + timedelta(seconds=seconds)
        assert changed(before, made(more, before, now), now, 5.0) is expected
    soon = NOW + timedelta(seconds=1)
    lost = observation(
        {"berlin": there("berlin", ready=False), "lyon": there("lyon")}, coordinator(round_=12)
    )
    assert changed(before, made(lost, before, soon), soon, 5.0)
    assert changed(None, before, NOW, 5.0)
    assert changed({**before, "lastUpdateTime": "x"}, made(more, before), NOW, 5.0)


def test_that_one_after_the_other_gets_a_machine_and_is_ready_is_progress() -> None:
    """Each write of a status costs the API server as much as a pod does; all that is decided by it is in conditions."""
    soon = NOW + timedelta(seconds=1)
    none, one, all_but_one, everybody = (
        observation(
            {
                name: there(name) if i < count else pending(name)
                for i, name in enumerate(("berlin", "lyon", "oslo"))
            }
        )
        for count in range(4)
    )
    before = made(none)
    assert not changed(before, made(one, before, soon), soon, 5.0)
    assert changed(before, made(one, before, soon), soon, 1.0)
    before = made(all_but_one)
    assert changed(before, made(everybody, before, soon), soon, 5.0)
    back = {**before, "release": {"state": "GivenBack", "since": "2026-08-01T12:00:00Z", "tries": 1}}
    assert changed(back, made(none, back, soon) | {"release": back["release"]}, soon, 5.0)


def test_a_status_that_says_the_same_is_never_written_again() -> None:
    before = made(training())
    later = NOW + timedelta(hours=1)
    shuffled = {**before, "conditions": before["conditions"][::-1]}
    assert not changed(shuffled, made(training(), shuffled, later), later, 5.0)


def test_the_words_of_a_scheduler_that_changes_its_mind_are_no_reason_to_hurry() -> None:
    before = made(observation({"berlin": pending("berlin", Reason.Unschedulable, SCHEDULER)}))
    soon = NOW + timedelta(seconds=1)
    other = observation({"berlin": pending("berlin", Reason.Unschedulable, "0/4 nodes are available")})
    assert not changed(before, made(other, before, soon), soon, 5.0)
    assert changed(before, made(other, before, soon), soon, 1.0)


def faults(count: int) -> Sequence[Fault]:
    return [Fault(f"spec.a[{i}]", None, "a-rule", f"must be {i}") for i in range(count)]


def test_a_manifest_that_breaks_rules_is_invalid_and_names_three_of_them() -> None:
    status = valid(rejected(None, 5, faults(5), NOW))
    assert (status["state"], status["observedGeneration"]) == ("Invalid", 5)
    (accepted,) = status["conditions"]
    assert (accepted["type"], accepted["status"], accepted["reason"]) == ("Accepted", "False", "InvalidSpec")
    assert accepted["message"] == (
        "spec.a[0]: must be 0 [a-rule]; spec.a[1]: must be 1 [a-rule]; spec.a[2]: must be 2 [a-rule]; and 2 more; "
        "change what is named; until then nothing is applied"
    )


def test_what_runs_is_still_told_of_while_a_manifest_is_rejected_and_an_end_outlives_it() -> None:
    before = made(observation({"berlin": failed("berlin", 65, "DataError: x")}))
    status = valid(rejected(before, 5, faults(1), NOW))
    assert truths(status)["Failed"] == ("True", "DatasetUnreadable")
    assert status["participants"] == before["participants"]
    assert sorted(conditions(status)) == sorted(TYPES)
    assert made(training(), status)["state"] == "Failed"


@pytest.mark.parametrize(
    "previous", [{"conditions": "x", "participants": [1], "attempt": "1"}, {"conditions": [{}]}]
)
def test_a_status_that_somebody_else_wrote_is_replaced(previous: Status) -> None:
    assert made(training(), previous)["state"] == "Running"
