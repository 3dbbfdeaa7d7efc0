"""A simulator that finds nothing proves nothing: each planted bug is found within a few hundred seeds."""

import re

import pytest
from tests.simulation import planted
from tests.simulation import planted_views as views
from tests.simulation.invariants import InvariantError
from tests.simulation.scenario import Scenario
from tests.simulation.simulator import run
from tests.simulation.world import Parts, plain_machine

from pcmoe_node.protocol.step import StepMachine

SEEDS = 400


def first_report(parts: Parts) -> str:
    """What the simulator says at the first seed that finds this bug."""
    for seed in range(SEEDS):
        try:
            run(Scenario.draw(seed), parts)
        except InvariantError as error:
            return str(error)
    return "not found"


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
        (planted.DecidesEarly, r"atomic: \d decided \d before all votes"),
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
    ("parts", "report"),
    [
        (Parts(coordinator=views.CommitsOnOneReport), r"commit: round \d was committed, but \d holds"),
        (Parts(coordinator=views.FormsOnOneReport), r"view: view \d+ begins at round \d, but \d holds"),
        (Parts(coordinator=views.NamesRoundZero), r"committed: view \d+ begins at round 0; round \d is"),
        (Parts(coordinator=views.TakesLostDiskForNew), r"committed: view \d+ begins at round 0; round \d is"),
        (Parts(coordinator=views.TellsOnce), r"livelock|waited in vain"),
        (Parts(coordinator=views.LastReportWins), r"failure: .* another process of participant \d"),
        (
            Parts(coordinator=views.KnowsNamesOnly, member=views.AnyIncarnation),
            r"stale: .* enters view \d+, which names",
        ),
        (Parts(member=views.CommitsAfterLeaving), r"stale: .* took a commit of view \w+ while in none"),
        (Parts(process=views.ConnectsToAnybody), r"stale: .* hears .* of view"),
        (Parts(process=views.EntersBeforeDropping), r"commit: round \d .* different histories|committed: "),
        (Parts(process=views.WritesToTakenDisk), r"stale: .* was started since"),
        (Parts(disk=views.ForgetsNumber), r"monotonic: .* accepts view \d after \d"),
        (Parts(disk=views.KeepsOne), r"failure: .* checkpoints are lost"),
    ],
    ids=lambda value: value.replace("\\", "") if isinstance(value, str) else "",
)
def test_a_planted_bug_of_views_is_found_and_named(parts: Parts, report: str) -> None:
    assert re.search(report, first_report(parts))


def test_a_report_holds_the_scenario_to_repeat_and_the_schedule_so_far() -> None:
    report = first_report(steps_of(planted.AppliesTwice))
    repeat = re.search(r"to repeat: run\((Scenario\(seed=(\d+), .*\))\)", report)
    assert repeat is not None
    assert str(Scenario.draw(int(repeat[2]))) == repeat[1]
    assert re.search(r"\d+\.\d\d  \d receives REQUEST FORWARD \d+ \(step", report)
