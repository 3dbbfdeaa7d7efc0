"""How many connections were turned down, by reason, over all views of a process."""

import threading

from pcmoe_node.exchange.tls.handshake import NotAdmittedError, Refusal

HANDSHAKE = "handshake"
"""There was no TLS, or the other side went away before it was done."""
REASONS = (HANDSHAKE, *(refusal.value for refusal in Refusal))


class Refusals:
    """Any thread may count; all reasons are there from the start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(REASONS, 0)

    def count(self, refusal: NotAdmittedError) -> None:
        """One more was turned down."""
        reason = refusal.code or (Refusal.AGREEMENT if refusal.verified else HANDSHAKE)
        with self._lock:
            self._counts[str(reason)] += 1

    def counts(self) -> dict[str, int]:
        """By reason."""
        with self._lock:
            return dict(self._counts)
