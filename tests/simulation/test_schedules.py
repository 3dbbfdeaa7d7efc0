"""Thousands of schedules of delay, reorder, copies, overflow and empty steps: no invariant may ever break."""

from collections import Counter

import pytest
from tests.simulation.scenario import Scenario
from tests.simulation.simulator import run

from pcmoe_node.protocol.effects import Phase

PART = 500


@pytest.mark.parametrize("part", range(10))
def test_no_schedule_breaks_an_invariant(part: int) -> None:
    for seed in range(part * PART, (part + 1) * PART):
        run(Scenario.draw(seed))


@pytest.mark.soak
@pytest.mark.parametrize("part", range(400))
def test_no_schedule_of_a_long_run_breaks_an_invariant(part: int) -> None:
    for seed in range(1_000_000 + part * PART, 1_000_000 + (part + 1) * PART):
        run(Scenario.draw(seed))


def test_a_seed_repeats_its_run() -> None:
    for seed in range(20):
        assert run(Scenario.draw(seed)) == run(Scenario.draw(seed))


def test_the_schedules_reach_what_they_are_for() -> None:
    seen: Counter[str] = Counter()
    for seed in range(300):
        seen += run(Scenario.draw(seed))
    events = ("applied", "skipped", "copy dropped", "late reply", "held", "served before entering")
    for what in (*Phase.__members__, *events):
        assert seen[what] >= 100, f"{what}: only {seen[what]}"
