"""Votes on a step: the pool's gradient norm and whether every shard's gradient is finite.

Clipping must not depend on who hosts what, so the pool of all experts is one clip group: each host sends the
squared norm of its shard's gradient, and everybody adds up the same votes in the same order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vote:
    """One participant's vote; without experts it is 0.0, and one that is not finite carries 0.0."""

    squared_norm: float
    finite: bool

    @staticmethod
    def of(squared_norm: float, finite: bool) -> "Vote":
        """The vote for a measured norm: an overflowed or undefined one is a vote that it isn't finite."""
        if finite and math.isfinite(squared_norm) and squared_norm >= 0:
            return Vote(squared_norm, True)
        return Vote(0.0, False)


@dataclass(frozen=True, slots=True)
class Pool:
    """What all votes together say."""

    squared_norm: float
    finite: bool
    reasons: tuple[str, ...]
    """Why it isn't finite, one sentence each; empty when it is."""


class Tally:
    """Collects one vote of each participant."""

    def __init__(self, names: Sequence[str]) -> None:
        """`names` in participant order."""
        self._names = names
        self._votes: dict[int, Vote] = {}

    def add(self, peer: int, vote: Vote) -> bool:
        """Count a vote. True: new; False: a copy of one seen. A different second vote is a `ValueError`."""
        earlier = self._votes.get(peer)
        if earlier is None:
            self._votes[peer] = vote
            return True
        if earlier != vote:
            raise ValueError(f"{earlier} before and {vote} now")
        return False

    def has(self, peer: int) -> bool:
        """Whether this participant has voted."""
        return peer in self._votes

    @property
    def complete(self) -> bool:
        """Whether everybody has voted."""
        return len(self._votes) == len(self._names)

    @property
    def missing(self) -> list[int]:
        """Who has not voted."""
        return [peer for peer in range(len(self._names)) if peer not in self._votes]

    def result(self) -> Pool:
        """The sum of all votes, the same bits at every participant."""
        total = 0.0
        for peer in range(len(self._names)):
            # Not sum(): from Python 3.12 on it compensates rounding, and partners may run different versions.
            total += self._votes[peer].squared_norm
        reasons = [
            f"expert gradients not finite at {name}"
            for peer, name in enumerate(self._names)
            if not self._votes[peer].finite
        ]
        if not math.isfinite(total):
            reasons.append("the squared norm of all expert gradients overflows")
            total = 0.0
        return Pool(total, not reasons, tuple(reasons))


def clip_scale(norm: float, max_norm: float) -> float:
    """What gradients of this norm are multiplied by so that it becomes at most `max_norm`."""
    return min(1.0, max_norm / (norm + 1e-6))
