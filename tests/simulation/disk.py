"""What a process has kept: all that is left of it after a crash."""

from dataclasses import dataclass, field

KEEP = 2
"""Newest rounds that are kept in any case."""


@dataclass(slots=True)
class Disk:
    """One participant's disk. Each change is durable at once; a process may end between any two."""

    owner: str = ""
    """The incarnation that was started last; no other may write any more."""
    number: int = 0
    """The highest view ever accepted."""
    committed: int = 0
    rounds: dict[int, int] = field(default_factory=dict)
    """Stored rounds, and the digest of what each was computed from."""
    finished: bool = False

    @property
    def newest(self) -> int:
        """The newest stored round; 0: none."""
        return max(self.rounds, default=0)

    def held(self) -> tuple[int, ...]:
        """Stored rounds, ascending."""
        return tuple(sorted(self.rounds))

    def accept(self, number: int) -> None:
        """Remember a view."""
        self.number = number

    def drop_after(self, first: int) -> None:
        """Delete what is newer than the round that a view begins from."""
        self.rounds = {number: history for number, history in self.rounds.items() if number <= first}

    def prune(self) -> None:
        """Delete what nobody can need any more."""
        kept = {*self.held()[-KEEP:], self.committed}
        self.rounds = {number: history for number, history in self.rounds.items() if number in kept}
