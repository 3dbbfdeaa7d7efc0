"""Whatever a peer sends, in whatever order: an effect, or a `ProtocolError` that names it."""

import random

import pytest

from pcmoe_node.errors import ProtocolError
from pcmoe_node.protocol.effects import Phase, Request, Serve
from pcmoe_node.protocol.step import StepMachine

NAMES = ("berlin", "lyon", "porto")
PHASES = tuple(Phase)


def anything(luck: random.Random, machine: StepMachine, peer: int) -> None:
    """One message of any kind with numbers in and out of bounds, and now and then an answer."""
    step = machine.version + luck.choice((-1, 0, 0, 0, 0, 1, 1, 2))
    kind = luck.randrange(8)
    if kind == 0:
        machine.step_end(peer, step, luck.randrange(3), luck.random() < 0.5)
    elif kind == 1:
        machine.vote(peer, step, luck.choice((0.0, 1.0, float("nan"))), luck.random() < 0.5)
    else:
        number = luck.randrange(12)
        request = Request(
            luck.choice(PHASES), step, luck.randint(0, 3), luck.choice((0, 4)), number, number % 3
        )
        for effect in machine.request(peer, request, None):
            if isinstance(effect, Serve) and luck.random() < 0.8:
                machine.served(effect.peer, effect.request)


@pytest.mark.parametrize("owners", [frozenset({0, 1, 2}), frozenset({1}), None])
def test_anything_a_peer_sends_ends_in_an_effect_or_an_error_that_names_it(
    owners: frozenset[int] | None,
) -> None:
    refused = 0
    for seed in range(2000):
        luck = random.Random(seed)
        machine = StepMachine(0, 3, 3, 2, (0, 4), names=NAMES)
        if owners is not None:
            machine.enter(0, owners)
        for _ in range(20):
            peer = luck.choice((1, 2))
            try:
                anything(luck, machine, peer)
            except ProtocolError as error:
                assert str(error).startswith(NAMES[peer])
                refused += 1
    assert refused > 1000
