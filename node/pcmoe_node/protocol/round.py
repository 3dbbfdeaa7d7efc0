"""Pure rules of steps and rounds: whose turn it is, when to evaluate, the learning rate, when to leave."""

import hmac
import math
from typing import Literal

Schedule = Literal["Concurrent", "Sequential"]
Decay = Literal["Constant", "Linear", "Cosine"]


def owners(schedule: Schedule, step: int, members: int, seed: int) -> frozenset[int]:
    """Who trains on own data in this step.

    Concurrent: everybody. Sequential: one; every block of `members` steps is a permutation of all, drawn from
    (seed, block) alone, so that it is the same in every process and Python version.
    """
    if schedule == "Concurrent":
        return frozenset(range(members))
    block, position = divmod(step, members)
    return frozenset((turns(block, members, seed)[position],))


def turns(block: int, members: int, seed: int) -> list[int]:
    """The order in which all members have their turn in this block of the Sequential schedule."""
    key = f"pcmoe turns, seed {seed}".encode()

    def ticket(member: int) -> bytes:
        return hmac.digest(key, f"block {block}, member {member} of {members}".encode(), "sha256")

    return sorted(range(members), key=ticket)


def round_of(step: int, steps_per_round: int) -> int:
    """The round that a step belongs to, counted from 1; round 0 is the state before any training."""
    return step // steps_per_round + 1


def evaluation_due(round_number: int, every: int, rounds: int) -> bool:
    """Whether to evaluate once this round is over: before training (0), every so often, after the last."""
    return round_number % every == 0 or round_number == rounds


def schedule_factor(step: int, warmup_steps: int, total_steps: int, decay: Decay) -> float:
    """What the learning rate is multiplied by in this global step, counted from 0.

    Rises linearly to 1 over the warm-up, then stays or falls; a falling one would be 0 at `total_steps`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if decay == "Constant":
        return 1.0
    if step >= total_steps:
        return 0.0
    passed = (step - warmup_steps) / (total_steps - warmup_steps)
    return 1.0 - passed if decay == "Linear" else (1.0 + math.cos(math.pi * passed)) / 2.0


class Farewell:
    """Who has said DONE: knows that the last round is committed, and needs nobody any more.

    Nobody leaves before everybody has said so: somebody may still ask it, or may not know of the commit yet.
    """

    def __init__(self, me: int, members: int) -> None:
        """A run with participants 0 … members - 1."""
        self._me = me
        self._members = members
        self._waiting = set(range(members))

    def done(self) -> bool:
        """This node needs nobody any more. True the first time: send DONE to every other participant."""
        first = self._me in self._waiting
        self._waiting.discard(self._me)
        return first

    def peer_done(self, peer: int) -> None:
        """DONE arrived, again or for the first time."""
        self._waiting.discard(peer)

    def said_done(self, peer: int) -> bool:
        """Whether this participant may go away without being missed."""
        return peer not in self._waiting

    @property
    def vouched(self) -> bool:
        """Whether anybody has said DONE: its word that the last round is committed is as good as the coordinator's."""
        return len(self._waiting) < self._members

    @property
    def may_leave(self) -> bool:
        """Whether everybody, this node included, is done."""
        return not self._waiting

    @property
    def waiting_for(self) -> list[int]:
        """Who has not said DONE yet."""
        return sorted(self._waiting)
