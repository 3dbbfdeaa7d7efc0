"""What enters the step machine and what it tells its caller to do. Participants are known by their index."""

from dataclasses import dataclass
from enum import IntEnum


class Phase(IntEnum):
    """What an owner asks of a host: to take hidden states forward, gradients back, or to evaluate."""

    FORWARD = 1
    BACKWARD = 2
    EVALUATE = 3


@dataclass(frozen=True, slots=True)
class Request:
    """One message from an owner to a host, without its payload."""

    phase: Phase
    step: int
    """Global step; for EVALUATE the version, that is, the number of steps decided so far."""
    micro_batch: int
    layer: int
    request_id: int
    """Chosen by the owner, unique per (owner, host); the copy of a message repeats it."""
    rows: int

    def __str__(self) -> str:
        where = f"step {self.step}, micro-batch {self.micro_batch}, layer {self.layer}"
        return f"{self.phase.name} {self.request_id} ({where}, {self.rows} rows)"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a step; every participant reaches the same, bit by bit."""

    apply: bool
    tokens: int
    """Supervised tokens over all owners: what gradients of the sum loss are divided by."""
    squared_norm: float
    """Squared norm of the whole expert pool's gradient, after that division."""
    reason: str | None = None
    """Why the step is skipped; None when it is applied."""


@dataclass(frozen=True, slots=True)
class Serve:
    """Answer this request with the weights of version `request.step`: call `served`, then send the reply."""

    peer: int
    request: Request
    item: object


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget this message and count it: a copy of something seen, or of a step that is over. No error."""

    peer: int
    item: object
    """What came with a request, so that its memory can be given back; None for STEP_END and VOTE."""
    reason: str


@dataclass(frozen=True, slots=True)
class BroadcastStepEnd:
    """Send STEP_END to every other participant."""

    step: int
    tokens: int
    ok: bool


@dataclass(frozen=True, slots=True)
class CastVote:
    """Every owner is done. Compute this shard's squared gradient norm and call `ballot`."""

    step: int
    tokens: int
    """Divide the gradients of the sum loss by this many tokens first; 0 only if `skipped`."""
    skipped: bool
    """Skipped whatever the votes say, so `ballot(0.0, True)` will do. The vote is still a fence."""


@dataclass(frozen=True, slots=True)
class BroadcastVote:
    """Send VOTE to every other participant."""

    step: int
    squared_norm: float
    finite: bool


@dataclass(frozen=True, slots=True)
class Decide:
    """Apply or skip the step, as the decision says, then call `applied`.

    Nothing is left to be served in it, but an owner that was not ok may have left a FORWARD without BACKWARD.
    """

    step: int
    outcome: Decision


Effect = Serve | Drop | BroadcastStepEnd | CastVote | BroadcastVote | Decide
