"""A simulator that finds nothing proves nothing: each planted bug is found within a few hundred seeds."""

import re

import pytest
from tests.simulation import planted
from tests.simulation.invariants import InvariantError
from tests.simulation.scenario import Scenario
from tests.simulation.simulator import plain_machine, run

from pcmoe_node.protocol.step import StepMachine

SEEDS = 300


def first_report(bug: type[StepMachine]) -> str:
    """What the simulator says at the first seed that finds this bug."""

    def machine(scenario: Scenario, me: int) -> StepMachine:
        made = plain_machine(scenario, me, bug)
        if isinstance(made, planted.VotesBeforeEntering):
            made.scenario = scenario
        return made

    for seed in range(SEEDS):
        try:
            run(Scenario.draw(seed), machine)
        except InvariantError as error:
            return str(error)
    return "not found"


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
    assert re.search(report, first_report(bug))


def test_a_report_holds_the_scenario_to_repeat_and_the_schedule_so_far() -> None:
    report = first_report(planted.AppliesTwice)
    repeat = re.search(r"to repeat: run\((Scenario\(seed=(\d+), .*\))\)", report)
    assert repeat is not None
    assert str(Scenario.draw(int(repeat[2]))) == repeat[1]
    assert re.search(r"\d+\.\d\d  \d receives REQUEST FORWARD \d+ \(step", report)
