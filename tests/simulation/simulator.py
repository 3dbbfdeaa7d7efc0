"""Runs a scenario from its seed: the same seed, the same schedule; a report shows both."""

from collections import Counter
from collections.abc import Callable

from tests.simulation.invariants import InvariantError, Watch
from tests.simulation.network import Message, Network
from tests.simulation.node import Node
from tests.simulation.scenario import Scenario

from pcmoe_node.protocol.step import StepMachine

MachineFactory = Callable[[Scenario, int], StepMachine]

EVENTS = 100_000
"""No run may need more events than this: a livelock is a violation, too."""

LINES = 400
"""Lines of the schedule that a report shows, the last ones."""


def plain_machine(scenario: Scenario, me: int, machine: type[StepMachine] = StepMachine) -> StepMachine:
    """The machine of a member, of this class."""
    return machine(
        me=me,
        members=scenario.members,
        micro_batches=scenario.micro_batches,
        in_flight=scenario.in_flight,
        served_layers=scenario.layers_of(me),
        first_step=scenario.first_step,
        evaluation_batches=scenario.evaluation_batches,
        tokens_per_step=9,
    )


def run(scenario: Scenario, machines: MachineFactory = plain_machine) -> Counter[str]:
    """Run until everybody has left; how often what happened. An `InvariantError` shows seed and schedule."""
    watch = Watch(scenario, trace=False)
    try:
        _run(scenario, machines, watch)
    except Exception:
        # Again, with a line per event: a seed is a schedule.
        _explain(scenario, machines)
    return watch.seen


def _run(scenario: Scenario, machines: MachineFactory, watch: Watch) -> None:
    network = Network(scenario.seed, scenario.copies, scenario.spread)
    nodes = [Node(me, scenario, network, watch, machines(scenario, me)) for me in range(scenario.members)]

    def deliver(to: int, message: Message) -> None:
        nodes[to].receive(message)

    network.connect(deliver)
    for node in nodes:
        network.later(node.start)
    for _ in range(EVENTS):
        if not network.step():
            break
    else:
        raise InvariantError(f"livelock: {EVENTS} events and no end\n" + "\n".join(map(str, nodes)))
    if not watch.finished():
        raise InvariantError("deadlock: nothing can happen any more\n" + "\n".join(map(str, nodes)))


def _explain(scenario: Scenario, machines: MachineFactory) -> None:
    watch = Watch(scenario, trace=True)
    try:
        _run(scenario, machines, watch)
    except Exception as error:
        assert watch.trace is not None
        skipped = len(watch.trace) - LINES
        shown = [f"… {skipped} earlier events …"] if skipped > 0 else []
        shown += watch.trace[-LINES:]
        text = "\n".join((f"{type(error).__name__}: {error}", f"to repeat: run({scenario})", *shown))
        raise InvariantError(text) from error
    raise InvariantError(
        f"seed {scenario.seed} failed once and passed the second time: the run is not repeatable"
    )
