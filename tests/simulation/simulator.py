"""Runs a scenario from its seed: the same seed, the same schedule; a report shows both."""

from collections import Counter

from tests.simulation.invariants import InvariantError
from tests.simulation.scenario import Scenario
from tests.simulation.world import Parts, World

EVENTS = 100_000
"""No run may need more events than this: a livelock is a violation, too."""

LINES = 400
"""Lines of the schedule that a report shows, the last ones."""


def run(scenario: Scenario, parts: Parts = Parts()) -> Counter[str]:  # noqa: B008
    """Run until everybody has ended; how often what happened. An `InvariantError` shows seed and schedule."""
    world = World(scenario, parts, trace=False)
    try:
        _run(world)
    except Exception:
        # Again, with a line per event: a seed is a schedule.
        _explain(scenario, parts)
    return world.watch.seen


def _run(world: World) -> None:
    for _ in range(EVENTS):
        if world.over or not world.step():
            break
    else:
        raise InvariantError(f"livelock: {EVENTS} events and no end\n{world}")
    if not world.over:
        raise InvariantError(f"deadlock: nothing can happen any more\n{world}")
    world.watch.over()


def _explain(scenario: Scenario, parts: Parts) -> None:
    world = World(scenario, parts, trace=True)
    try:
        _run(world)
    except Exception as error:
        trace = world.watch.journal.trace
        assert trace is not None
        skipped = len(trace) - LINES
        shown = [f"… {skipped} earlier events …"] if skipped > 0 else []
        shown += trace[-LINES:]
        text = "\n".join((f"{type(error).__name__}: {error}", f"to repeat: run({scenario})", *shown))
        raise InvariantError(text) from error
    raise InvariantError(
        f"seed {scenario.seed} failed once and passed the second time: the run is not repeatable"
    )
