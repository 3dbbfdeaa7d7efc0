"""What a simulated run looks like: everything that is drawn before it starts, from its seed alone."""

import random
from dataclasses import dataclass, replace

from tests.simulation import faults
from tests.simulation.faults import Fault

from pcmoe_node.protocol import round as rules

MESSAGES = 400
"""About so many requests a run may have, so that thousands of runs fit into a minute."""
TROUBLED = 300
"""The same for a run with faults, which does much of its work twice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One consortium, its schedule, its network and its bad luck."""

    seed: int
    members: int
    hosts: tuple[tuple[int, ...], ...]
    """Participants that host experts of each layer that is not local."""
    schedule: rules.Schedule
    rounds: int
    steps_per_round: int
    first_round: int
    """Rounds behind us at the start: a run that was resumed."""
    micro_batches: int
    in_flight: int
    evaluation_batches: int
    evaluation_every: int
    copies: float
    """Probability that a message arrives twice."""
    spread: float
    """How far delays differ: 0 keeps almost every order, 1 hardly any."""
    not_ok: float
    """Probability that an owner's numbers overflow in a step."""
    not_finite: float
    """Probability that a host's gradients are not finite in a step."""
    no_tokens: float
    """Probability that nobody has a supervised token in a step."""
    faults: tuple[Fault, ...]
    """What goes wrong, in the order of time."""

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.rounds * self.steps_per_round

    @property
    def first_step(self) -> int:
        """The step this run starts with."""
        return self.first_round * self.steps_per_round

    def beginning_at(self, first_round: int) -> "Scenario":
        """The same from this round on: what a view sees of it."""
        return self if first_round == self.first_round else replace(self, first_round=first_round)

    def layers_of(self, member: int) -> tuple[int, ...]:
        """The layers with experts at this member."""
        return tuple(layer for layer, hosts in enumerate(self.hosts) if member in hosts)

    def owners(self, step: int) -> frozenset[int]:
        """Who has micro-batches in this step."""
        return rules.owners(self.schedule, step, self.members, self.seed)

    def evaluates(self, version: int) -> bool:
        """Whether everybody evaluates at this version."""
        passed, within = divmod(version, self.steps_per_round)
        return within == 0 and rules.evaluation_due(passed, self.evaluation_every, self.rounds)

    @staticmethod
    def draw(seed: int) -> "Scenario":
        """The scenario of a seed."""
        luck = random.Random(f"scenario {seed}")
        members = luck.choice((1, 2, 2, 3, 3, 4, 5))
        schedule: rules.Schedule = luck.choice(("Concurrent", "Sequential"))
        hosts = tuple(
            tuple(sorted(luck.sample(range(members), luck.randint(1, members))))
            for _ in range(luck.randint(1, 3))
        )
        owners = members if schedule == "Concurrent" else 1
        pairs = max(1, owners * sum(map(len, hosts)) * (members - 1) // members)
        steps_per_round = members if schedule == "Sequential" else luck.randint(1, 2)
        troubles = faults.draw(seed, members)
        rounds = luck.randint(1, 5 if troubles else 2)
        first_round = luck.randint(0, rounds - 1)
        steps = (rounds - first_round) * steps_per_round
        micro_batches = luck.randint(
            1, max(1, min(4, (TROUBLED if troubles else MESSAGES) // (2 * pairs * steps)))
        )
        bad = luck.random() < 0.5
        return Scenario(
            seed=seed,
            members=members,
            hosts=hosts,
            schedule=schedule,
            rounds=rounds,
            steps_per_round=steps_per_round,
            first_round=first_round,
            micro_batches=micro_batches,
            in_flight=luck.randint(1, micro_batches),
            evaluation_batches=luck.randint(1, 2),
            evaluation_every=luck.randint(1, 2),
            copies=luck.choice((0.0, 0.05, 0.3)),
            spread=luck.choice((0.0, 0.5, 1.0)),
            not_ok=0.15 * bad,
            not_finite=0.1 * bad,
            no_tokens=0.1 * bad,
            faults=troubles,
        )
