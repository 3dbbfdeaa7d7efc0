"""A simulator that finds nothing proves nothing: each planted bug is found within a few hundred seeds."""

import itertools
import re

import pytest
from tests.simulation import planted
from tests.simulation import planted_views as views
from tests.simulation.faults import Kind
from tests.simulation.invariants import InvariantError
from tests.simulation.scenario import Scenario
from tests.simulation.simulator import run
from tests.simulation.world import Parts, plain_machine

from pcmoe_node.protocol.step import StepMachine

SEEDS = 400


def first_report(parts: Parts, *kinds: Kind) -> str:
    """What the simulator says at the first seed that finds this bug, among those with these faults."""
    scenarios = (Scenario.draw(seed) for seed in itertools.count())
    struck = (each for each in scenarios if {fault.kind for fault in each.faults}.issuperset(kinds))
    for scenario in itertools.islice(struck, SEEDS):
        try:
            run(scenario, parts)
        except InvariantError as error:
            return str(error)
    return "not found"


def named(parts: Parts) -> str:
    """What is planted, for the name of a test."""
    classes = (parts.coordinator, parts.member, parts.process, parts.disk)
    return " ".join(part.__name__ for part in classes if part.__module__ == views.__name__)


def steps_of(bug: type[StepMachine]) -> Parts:
    """All as it is, but for the steps."""

    def machine(scenario: Scenario, me: int) -> StepMachine:
        made = plain_machine(scenario, me, bug)
        if isinstance(made, planted.VotesBeforeEntering):
            made.scenario = scenario
        return made

    return Parts(machine=machine)


@pytest.mark.parametrize(
    ("bug", "report"),
    [
        (planted.HoldsAndWaits, "deadlock: nothing can happen any more"),
        (planted.ForgetsHeld, "deadlock: nothing can happen any more"),
        (planted.DecidesEarly, r"atomic: (\d decided \d before all votes|step \d was decided as .*, not as)"),
        (planted.SkipsWithoutVotes, r"atomic: \d decided \d before all votes"),
        (planted.AddsAsTheyCome, r"atomic: .* decided (\d )?as Decision.*(others|not) as"),
        (planted.ServesEarly, r"version: \d served FORWARD .* with weights of version"),
        (planted.EvaluatesStale, r"version: \d served EVALUATE .* with weights of version"),
        (planted.AppliesTwice, r"exactly once: \d served .* twice"),
        (planted.DecidesTwice, r"atomic: \d decided \d, expected \d"),
        (planted.VotesBeforeEntering, r"fence: \d voted in step \d before entering it"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_planted_bug_is_found_and_named(bug: type[StepMachine], report: str) -> None:
    assert re.search(report, first_report(steps_of(bug)))


@pytest.mark.parametrize(
    ("parts", "kinds", "report"),
    [
        (Parts(coordinator=views.CommitsOnOneReport), (), r"commit: round \d was committed, but \d holds"),
        (Parts(coordinator=views.FormsOnOneReport), (), r"view: view \d+ begins at round \d, but \d holds"),
        (Parts(coordinator=views.NamesRoundZero), (), r"(committed|view): view \d+ begins at round \d"),
        (
            Parts(coordinator=views.TakesLostDiskForNew),
            (Kind.LOST_DISK,),
            r"committed: view \d+ begins at round 0; round \d is committed",
        ),
        (
            Parts(coordinator=views.LastReportWins),
            (Kind.ZOMBIE,),
            r"failure: .*another process of participant \d has started since",
        ),
        (
            Parts(coordinator=views.KnowsNamesOnly, member=views.AnyIncarnation),
            (),
            r"stale: .* enters view \d+, which names",
        ),
        (
            Parts(member=views.CommitsAfterLeaving),
            (Kind.CRASH_AT,),
            r"stale: .* took a commit of view \w+ while in none",
        ),
        (Parts(process=views.ConnectsToAnybody), (Kind.ZOMBIE,), r"stale: .* hears .* of view"),
        (Parts(process=views.EntersBeforeDropping), (), r"commit: round \d was committed, but \d holds"),
        (Parts(process=views.WritesToTakenDisk), (Kind.ZOMBIE,), r"(stale|failure): .* started since"),
        (Parts(disk=views.ForgetsNumber), (Kind.BLACKOUT,), r"monotonic: .* accepts view \d after \d"),
        (Parts(disk=views.KeepsOne), (Kind.CRASH_AT,), r"failure: .*checkpoints are lost"),
        (Parts(disk=views.KeepsWhatIsRolledBack), (Kind.CRASH_AT,), r"commit: .* different histories"),
    ],
    ids=lambda value: named(value) if isinstance(value, Parts) else "",
)
def test_a_planted_bug_of_views_is_found_and_named(
    parts: Parts, kinds: tuple[Kind, ...], report: str
) -> None:
    assert re.search(report, first_report(parts, *kinds))


def test_a_report_holds_the_scenario_to_repeat_and_the_schedule_so_far() -> None:
    report = first_report(steps_of(planted.AppliesTwice))
    repeat = re.search(r"to repeat: run\((Scenario\(seed=(\d+), .*\))\)", report)
    assert repeat is not None
    assert str(Scenario.draw(int(repeat[2]))) == repeat[1]
    assert re.search(r"\d+\.\d\d  \d receives REQUEST FORWARD \d+ \(step", report)
