"""All pods of a consortium or none: one decision at a time, and whole schedules of a tiny cluster."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.gang_world import BEGIN, LIMITS, World, by_chance, consortium

from pcmoe_operator import gang
from pcmoe_operator.gang import Decision, Mine, Place, Release, Rival, Stage, decide, rival_of
from pcmoe_operator.world import World as Watched

SCHEDULES = 100
MANY = 5000
OLD, YOUNG, YOUNGER = ("2026-07-01", "a"), ("2026-07-02", "b"), ("2026-07-03", "c")
BOUND = Place(released=True, placed=True, holds=True)
SUSPENDED = Place()
PENDING = Place(released=True)


def lacking(seconds: float) -> Place:
    """A pod that has waited so long."""
    return Place(released=True, lacking_since=BEGIN - timedelta(seconds=seconds))


def running(found: Decision) -> set[str]:
    """Whose Jobs run."""
    return set(found.run)


def release(stage: Stage, ago: float, tries: int = 0) -> Release:
    return Release(stage=stage, since=BEGIN - timedelta(seconds=ago), tries=tries)


def rival(
    age: tuple[str, str],
    what: Release,
    *,
    placed: bool = False,
    lacks: float | None = None,
    holds: bool = False,
) -> Rival:
    since = None if lacks is None else BEGIN - timedelta(seconds=lacks)
    return Rival(age=age, release=what, placed=placed, lacking_since=since, holds=holds)


def decided(
    places: Sequence[Place], was: Release | None, rivals: Sequence[Rival] = (), age: tuple[str, str] = YOUNG
) -> Decision:
    named = {str(number): place for number, place in enumerate(places)}
    return decide(Mine(age=age, release=was, places=named), rivals, BEGIN, LIMITS)


RELEASED, GIVEN_BACK, QUEUED = Stage.RELEASED, Stage.GIVEN_BACK, Stage.QUEUED


def test_a_new_consortium_asks_for_all_machines_at_once() -> None:
    found = decided([Place(), Place()], None)
    assert (found.release.stage, running(found)) == (RELEASED, {"0", "1"})


def test_one_that_lacks_a_machine_keeps_the_others_until_its_time_is_over() -> None:
    was = release(RELEASED, 60)
    found = decided([BOUND, lacking(LIMITS.unschedulable - 1)], was)
    assert (found.release, running(found), found.look_in) == (was, {"0", "1"}, 1)


def test_then_who_has_a_machine_gives_it_back_and_who_has_none_goes_on_waiting() -> None:
    found = decided([BOUND, lacking(LIMITS.unschedulable), PENDING], release(RELEASED, 60))
    assert found.release == Release(stage=GIVEN_BACK, since=BEGIN, tries=1)
    assert found.run == {"1", "2"}


def test_what_was_decided_before_the_operator_died_is_done_by_the_next_one() -> None:
    found = decided([BOUND, lacking(21), SUSPENDED], release(GIVEN_BACK, 1, tries=1))
    assert (found.release, running(found)) == (release(GIVEN_BACK, 1, tries=1), {"1"})


def test_a_machine_that_comes_in_the_last_moment_is_kept() -> None:
    found = decided([BOUND, BOUND], release(GIVEN_BACK, 1, tries=1))
    assert (found.release.stage, running(found)) == (RELEASED, {"0", "1"})


def test_while_a_pod_waits_for_a_machine_the_rest_is_not_asked_for() -> None:
    was = release(GIVEN_BACK, 1000, tries=1)
    found = decided([SUSPENDED, lacking(1000)], was)
    assert (found.release, running(found)) == (was, {"1"})


def test_when_it_has_one_all_are_asked_for() -> None:
    found = decided([SUSPENDED, BOUND], release(GIVEN_BACK, 1000, tries=1))
    assert (found.release, running(found)) == (Release(stage=RELEASED, since=BEGIN, tries=1), {"0", "1"})


def test_as_soon_as_one_of_those_that_wait_has_a_machine_all_are_asked_for() -> None:
    found = decided([lacking(1000), BOUND], release(GIVEN_BACK, 1000, tries=1))
    assert found.release.stage is RELEASED


def test_a_pod_that_takes_what_its_own_consortium_gave_back_gives_it_back_too_and_all_try_again_after_a_rest() -> (
    None
):
    found = decided([SUSPENDED, BOUND], release(GIVEN_BACK, 2, tries=1))
    assert (found.release.stage, running(found)) == (GIVEN_BACK, set())
    again = decided([SUSPENDED, SUSPENDED], release(GIVEN_BACK, 2 * LIMITS.retry, tries=1))
    assert (again.release.stage, running(again)) == (RELEASED, {"0", "1"})


def test_a_second_try_ends_soon() -> None:
    places = [BOUND, lacking(LIMITS.turn)]
    assert decided(places, release(RELEASED, LIMITS.turn, tries=1)).release.stage is GIVEN_BACK
    assert decided(places, release(RELEASED, LIMITS.turn)).release.stage is RELEASED


def test_a_pod_that_has_waited_all_along_has_its_time_in_a_try_as_well() -> None:
    assert decided([BOUND, lacking(500)], release(RELEASED, 1, tries=1)).release.stage is RELEASED


def test_who_has_all_machines_begins_to_count_anew() -> None:
    was = release(RELEASED, 500, tries=7)
    assert decided([BOUND, BOUND], was).release == replace(was, tries=0)


def test_a_pod_that_loses_its_machine_in_mid_training_counts_like_one_that_never_had_any() -> None:
    was = release(RELEASED, 50_000)
    assert decided([BOUND, lacking(LIMITS.unschedulable - 1)], was).release.stage is RELEASED
    assert decided([BOUND, lacking(LIMITS.unschedulable)], was).release.stage is GIVEN_BACK


def test_a_participant_that_has_ended_needs_no_machine() -> None:
    found = decided([BOUND, Place(over=True)], release(RELEASED, 50))
    assert (found.release.stage, running(found)) == (RELEASED, {"0"})


def test_the_younger_of_two_that_lack_machines_gives_back_first() -> None:
    places, was = [BOUND, lacking(LIMITS.turn)], release(RELEASED, LIMITS.turn)
    older, younger = (rival(age, was, lacks=LIMITS.turn) for age in (OLD, YOUNGER))
    assert decided(places, was, [older]).release.stage is GIVEN_BACK
    assert decided(places, was, [younger]).release.stage is RELEASED


def test_who_gave_back_leaves_no_pod_waiting_where_somebody_else_lacks_machines() -> None:
    other = rival(OLD, release(RELEASED, 2), lacks=2)
    assert running(decided([SUSPENDED, lacking(30)], release(GIVEN_BACK, 1, tries=1), [other])) == set()


def test_a_younger_one_that_was_faster_gives_way_to_an_older_one_that_came_with_it() -> None:
    mine, both = release(RELEASED, 15), [BOUND, BOUND]
    for other, stage in (
        (rival(OLD, release(RELEASED, 16), lacks=15), GIVEN_BACK),
        (rival(OLD, release(RELEASED, 12), lacks=12), GIVEN_BACK),
        (rival(OLD, release(RELEASED, 11), lacks=11), RELEASED),  # it came later
        (rival(OLD, release(RELEASED, 16), lacks=1), RELEASED),  # it had all and has lost one
        (rival(OLD, release(RELEASED, 16, tries=1), lacks=15), RELEASED),
        (rival(YOUNGER, release(RELEASED, 16), lacks=15), RELEASED),
    ):
        assert decided(both, mine, [other]).release.stage is stage, other


def test_one_that_runs_since_before_there_was_a_status_keeps_what_it_has() -> None:
    older = rival(OLD, release(RELEASED, 1), lacks=1)
    found = decided([BOUND, BOUND], None, [older])
    assert found.release.stage is RELEASED
    assert decided([BOUND, BOUND], found.release, [older]).release.stage is RELEASED


def test_a_new_one_queues_behind_an_older_one_that_wants_machines_now() -> None:
    for other in (
        rival(OLD, release(RELEASED, 2), lacks=1),
        rival(OLD, release(GIVEN_BACK, 2 * LIMITS.retry, tries=3)),
    ):
        found = decided([Place(), Place()], None, [other])
        assert (found.release.stage, running(found)) == (QUEUED, set())
        assert found.release.tries == (3 if other.release.waits else 0)
    for other in (
        rival(OLD, release(RELEASED, 2)),
        rival(OLD, release(GIVEN_BACK, 1, tries=3)),
        rival(YOUNGER, release(RELEASED, 2), lacks=1),
    ):
        assert decided([Place(), Place()], None, [other]).release.stage is RELEASED


def test_only_one_tries_at_a_time() -> None:
    was, places = release(GIVEN_BACK, 2 * LIMITS.retry, tries=1), [SUSPENDED, SUSPENDED]
    for other in (
        rival(YOUNGER, release(RELEASED, 1, tries=1)),
        rival(YOUNGER, release(RELEASED, 2 * LIMITS.turn, tries=1), lacks=1),
        rival(YOUNGER, release(GIVEN_BACK, 1, tries=2), holds=True),
    ):
        assert decided(places, was, [other]).release.stage is GIVEN_BACK
    for other in (
        rival(YOUNGER, release(RELEASED, 2 * LIMITS.turn, tries=1)),
        rival(YOUNGER, release(GIVEN_BACK, 1, tries=2)),
        rival(YOUNGER, release(GIVEN_BACK, 100, tries=2), holds=True),
    ):
        assert decided(places, was, [other]).release.stage is RELEASED


def test_the_turn_is_with_the_fewest_tries_and_then_with_the_older() -> None:
    rested, places = 2 * LIMITS.retry, [SUSPENDED, SUSPENDED]
    for other, first in (
        (rival(OLD, release(GIVEN_BACK, rested, tries=2)), False),
        (rival(OLD, release(GIVEN_BACK, 1, tries=2)), False),
        (rival(OLD, release(GIVEN_BACK, rested, tries=3)), True),
        (rival(YOUNGER, release(GIVEN_BACK, rested, tries=2)), True),
        (rival(YOUNGER, release(QUEUED, rested, tries=1)), False),
    ):
        found = decided(places, release(GIVEN_BACK, rested, tries=2), [other])
        assert (found.release.stage is RELEASED) is first, other


def test_one_that_never_takes_its_turn_is_passed_over() -> None:
    stuck = [
        rival(OLD, release(GIVEN_BACK, 1000, tries=1)),
        rival(OLD, release(RELEASED, 1000, tries=1), lacks=1000),
    ]
    assert decided([SUSPENDED], release(GIVEN_BACK, 100, tries=2), stuck).release.stage is RELEASED


def test_chance_is_the_same_after_a_restart_and_differs_between_consortia() -> None:
    waits = {
        decided([SUSPENDED], release(GIVEN_BACK, 0, tries=1), age=("2026", u)).look_in for u in "abcdefgh"
    }
    again = {
        decided([SUSPENDED], release(GIVEN_BACK, 0, tries=1), age=("2026", u)).look_in for u in "abcdefgh"
    }
    assert waits == again and len(waits) > 4
    assert all(wait and LIMITS.retry <= wait <= 1.2 * LIMITS.retry for wait in waits)


# What others' statuses say


def raw(scheduled: tuple[str, str] = ("False", "Unschedulable"), **more: Any) -> dict[str, Any]:
    condition = {"type": "Scheduled", "status": scheduled[0], "reason": scheduled[1]}
    condition["lastTransitionTime"] = "2026-08-01T00:00:00Z"
    return {
        "metadata": {"creationTimestamp": "2026-07-01T00:00:00Z", "uid": "1", **more.get("metadata", {})},
        "spec": more.get("spec", {}),
        "status": {
            "attempt": 1,
            "release": {"state": "Released", "since": "2026-08-01T00:00:00.500Z", "tries": 2},
            "conditions": [condition],
            "participants": [{"name": "berlin", "node": "gpu-1"}],
            **more.get("status", {}),
        },
    }


def test_another_consortium_is_judged_by_what_its_status_says() -> None:
    found = rival_of(raw())
    assert found is not None and found.lacking_since == BEGIN and found.holds and not found.placed
    assert found.release == Release(stage=RELEASED, since=BEGIN + timedelta(seconds=0.5), tries=2)
    assert found.release.written() == raw()["status"]["release"]
    starting = rival_of(raw(("False", "Starting")))
    assert starting is not None and starting.lacking_since is None
    unbound = rival_of(raw(("False", "VolumeUnbound")))
    assert unbound is not None and unbound.lacking_since is None
    placed = rival_of(raw(("True", "AllScheduled")))
    assert placed is not None and placed.placed


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": {"suspend": True}},
        {"spec": {"managedBy": "somebody.example/else"}},
        {"spec": {"attempt": 2}},
        {"metadata": {"deletionTimestamp": "2026-08-01T00:00:00Z"}},
        {"status": {"release": {}}},
        {"status": {"release": {"state": "Odd", "since": "2026-08-01T00:00:00Z", "tries": 1}}},
        {"status": {"release": {"state": "Released", "since": "yesterday", "tries": 1}}},
    ],
    ids=str,
)
def test_one_that_wants_no_machines_stands_in_nobodys_way(changes: Mapping[str, Any]) -> None:
    assert rival_of(raw(**changes)) is None


def test_the_world_knows_who_else_wants_machines_and_a_status_counts_as_soon_as_it_is_written() -> None:
    world = Watched(lambda _key: None)
    for name in ("one", "two"):
        made = raw(("True", "AllScheduled"), metadata={"namespace": "ns", "name": name, "uid": name})
        world.saw("ADDED", {"kind": "PCMoEConsortium", **made})
    assert world.rivals(("ns", "one")) == []
    waits = raw()["status"] | {"release": {"state": "GivenBack", "since": "2026-08-01T00:00:00Z", "tries": 1}}
    world.wrote(("ns", "two"), "another uid", waits)
    assert world.rivals(("ns", "one")) == []
    world.wrote(("ns", "two"), "two", waits)
    assert [each.release.stage for each in world.rivals(("ns", "one"))] == [GIVEN_BACK]
    assert world.rivals(("ns", "two")) == []
    assert world.consortia["ns", "two"]["status"] == waits
    world.saw("DELETED", world.consortia["ns", "two"])
    assert world.rivals(("ns", "one")) == []


# Whole schedules


def test_in_every_schedule_everybody_trains_in_the_end_and_nobody_gives_back_in_vain() -> None:
    everybody_trains(range(SCHEDULES))


@pytest.mark.soak
def test_the_same_in_many_more_schedules() -> None:
    everybody_trains(range(SCHEDULES, SCHEDULES + MANY))


def everybody_trains(seeds: Iterable[int]) -> None:
    for seed in seeds:
        world = by_chance(seed)
        assert world.run(1500), f"seed {seed}: {[c.name for c in world.consortia if not c.over]}"
        assert world.wrong == [], f"seed {seed}"


def test_of_two_that_each_fit_alone_the_older_trains_first() -> None:
    for seed in range(SCHEDULES):
        young, old = consortium("young", "aaa", at=0.5), consortium("old", "aaa")
        world = World(seed, {"a": 4}, [young, old])
        assert world.run(300), f"seed {seed}"
        assert old.ended and young.ended and old.ended < young.ended, f"seed {seed}"


def test_consortia_that_fit_nowhere_keep_nobody_from_training() -> None:
    for seed in range(6):
        large = [consortium(f"large{number}", "aaaaa") for number in range(5)]
        small = [consortium("small", "aaa", at=1), consortium("late", "aaaa", at=90)]
        world = World(seed, {"a": 4}, [*large, *small])
        world.run(600)
        assert [each.name for each in small if not each.over] == [], f"seed {seed}"


def test_a_machine_that_comes_late_is_used() -> None:
    for seed in range(40):
        world = World(seed, {"a": 3}, [consortium("four", "aaaa", work=5)])
        assert not world.run(100)
        world.room["a"] = 4
        assert world.run(1.2 * LIMITS.retry + LIMITS.turn + 10), f"seed {seed}"


def faults(worlds: Sequence[World]) -> list[str]:
    """What goes wrong in some worlds."""
    found = []
    for world in worlds:
        ended = world.run(600)
        late = [each.name for each in world.consortia if not each.over and not each.name.startswith("large")]
        found += world.wrong + (late if not ended else [])
    return found


def test_a_rule_that_forgets_the_others_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.gang_world.decide", lambda mine, _rivals, *rest: decide(mine, [], *rest))
    assert any("tries beside" in fault for fault in faults([by_chance(seed) for seed in range(60)]))


def test_pods_left_waiting_beside_others_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gang, "_short", lambda *_: False)
    assert any("there was room" in fault for fault in faults([by_chance(seed) for seed in range(200, 220)]))


def test_a_turn_that_is_always_the_oldests_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def before(rival: Rival, age: gang.Age, _release: Release, now: Any, limits: gang.Limits) -> bool:
        return gang._expected(rival, now, limits) and rival.age < age

    monkeypatch.setattr(gang, "_before", before)
    large = [consortium(f"large{number}", "aaaaa") for number in range(5)]
    assert "small" in faults([World(1, {"a": 4}, [*large, consortium("small", "aaa", at=1)])])
