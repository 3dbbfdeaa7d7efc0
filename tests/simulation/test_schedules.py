"""Thousands of schedules: no invariant may ever break.

Delay, reorder, copies, overflow and empty steps in all of them; in three of five also crashes, lost disks, partitions,
broken sessions, and coordinators that come and go.
"""

from collections import Counter

import pytest
from tests.simulation.faults import POINTS, Kind
from tests.simulation.scenario import Scenario
from tests.simulation.simulator import run

from pcmoe_node.protocol.effects import Phase

PART = 500
NOT_AT_ONCE = (Kind.CRASH_AT, Kind.COORDINATOR_AT, Kind.PARTITION)
"""Faults that are counted under what they did in the end."""


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
    for seed in range(1200):
        seen += run(Scenario.draw(seed))
    steps = ("applied", "skipped", "copy dropped", "late reply", "held", "served before entering")
    struck = {Kind.LOST_DISK: 20, Kind.FAILURE: 10, Kind.ZOMBIE: 20}
    least = {
        **dict.fromkeys((*Phase.__members__, *steps), 1000),
        **{kind: struck.get(kind, 50) for kind in Kind if kind not in NOT_AT_ONCE},
        **{f"crash when {point}": 2 for point in POINTS},
        **dict.fromkeys(("view formed", "round committed", "connection refused"), 500),
        **dict.fromkeys(("view left", "peer lost", "coordinator crash between notices"), 100),
        **dict.fromkeys(("short partition", "long partition", "superseded", "rollback"), 20),
        "frame of a view that is over": 100,
        "told to finish": 2,
    }
    few = {what: (seen[what], number) for what, number in least.items() if seen[what] < number}
    assert few == {}
