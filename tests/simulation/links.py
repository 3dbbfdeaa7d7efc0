"""Connections between processes of one view, and how processes end."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.process import Process

CRASHED = -1
STOPPED = 143


class EndedError(Exception):
    """A process ends here, in the middle of whatever it does."""

    def __init__(self, process: "Process", code: int, reason: str = "") -> None:
        super().__init__(f"{process} ends with {code}: {reason}")
        self.process = process
        self.code = code
        self.reason = reason


class Link:
    """A connection between two processes of one view."""

    def __init__(self, ends: "tuple[Process, Process]", mark: str) -> None:
        self.ends = ends
        self.mark = mark
        """Of the view."""
        self.quiet = 0.0
        """When the last message that is under way arrives."""

    def beyond(self, process: "Process") -> "Process":
        """The other end."""
        return self.ends[self.ends[0] is process]
