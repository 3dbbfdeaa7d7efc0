"""What is started again, and when; pure. In a cluster this is the Job controller's part."""

from enum import Enum, auto
from typing import Literal

BACK_OFF_SECONDS = (0.5, 2.0, 8.0)
"""Before the first, second and third start after an end. A node gets no fourth, the coordinator the last again."""

FAULT = 70
PEER_LOST = 75


class Policy(Enum):
    """Whose end it is."""

    FAIL = auto()
    """A node's, with `onPeerLoss: Fail`."""
    WAIT = auto()
    """A node's, with `onPeerLoss: Wait`."""
    COORDINATOR = auto()
    """The coordinator's: it keeps nothing that could be lost, and nobody can take its place."""

    @staticmethod
    def of_nodes(on_peer_loss: Literal["Fail", "Wait"]) -> "Policy":
        """The policy of a consortium's nodes."""
        return Policy.WAIT if on_peer_loss == "Wait" else Policy.FAIL


def what_next(exit_code: int, tries: int, policy: Policy) -> float | None:
    """Seconds until a process is started again that has ended by itself, or None: it stays ended.

    `tries` is how often it was started again since it last got further.
    """
    if policy is Policy.FAIL:
        return None
    if policy is Policy.COORDINATOR:
        again = by_signal(exit_code) or exit_code in (0, FAULT, PEER_LOST)
    else:
        again = (by_signal(exit_code) or exit_code == PEER_LOST) and tries < len(BACK_OFF_SECONDS)
    return BACK_OFF_SECONDS[min(tries, len(BACK_OFF_SECONDS) - 1)] if again else None


def by_signal(exit_code: int) -> bool:
    """Whether a signal ended the process; one that heeds SIGTERM or SIGINT ends with such a code, too."""
    return exit_code > 128
