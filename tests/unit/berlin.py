"""Berlin's step machine among three, and the messages that tests feed it."""

from pcmoe_node.protocol.effects import Drop, Effect, Phase, Request, Serve
from pcmoe_node.protocol.step import StepMachine

BERLIN, LYON, PORTO = 0, 1, 2
NAMES = ("berlin", "lyon", "porto")
ALL = frozenset({BERLIN, LYON, PORTO})
FORWARD, BACKWARD, EVALUATE = Phase.FORWARD, Phase.BACKWARD, Phase.EVALUATE


def machine(**changes: object) -> StepMachine:
    """Berlin's machine: two micro-batches, one at a time, one layer served."""
    fields: dict[str, object] = {
        "me": BERLIN,
        "members": 3,
        "micro_batches": 2,
        "in_flight": 1,
        "served_layers": (4,),
        "names": NAMES,
    }
    return StepMachine(**(fields | changes))  # type: ignore[arg-type]


def hostless(**changes: object) -> StepMachine:
    """A machine without experts: nobody owes it any request."""
    return machine(served_layers=(), **changes)


def ask(phase: Phase, step: int, request_id: int, micro_batch: int = 0) -> Request:
    return Request(phase, step, micro_batch, 4, request_id, 3)


def serve_whole_step(berlin: StepMachine, peer: int) -> None:
    """All requests of a peer in the current step, one after the other, answered at once."""
    for micro_batch in range(berlin.micro_batches):
        for number, phase in enumerate((FORWARD, BACKWARD)):
            request = ask(phase, berlin.version, 1 + 2 * micro_batch + number, micro_batch)
            assert berlin.request(peer, request, "item") == [Serve(peer, request, "item")]
            assert berlin.served(peer, request) == []


def drop(effects: list[Effect]) -> Drop:
    (effect,) = effects
    assert isinstance(effect, Drop)
    return effect


def finish_step(berlin: StepMachine, owners: frozenset[int] = ALL) -> list[Effect]:
    """Enter and end the current step with one token per owner."""
    step = berlin.version
    berlin.enter(step, owners)
    for peer in sorted(owners):
        if peer == BERLIN:
            berlin.owner_done(1, True)
        else:
            if berlin.served_layers:
                serve_whole_step(berlin, peer)
            berlin.step_end(peer, step, 1, True)
    berlin.ballot(0.5, True)
    berlin.vote(LYON, step, 0.25, True)
    berlin.vote(PORTO, step, 0.125, True)
    return berlin.applied()
