"""The leaves of a local run: a new one each time the run starts, and a successor before it expires."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pcmoe_operator.errors import UsageError
from pcmoe_operator.pki import issue_leaf, read_authority, renew_due, write_leaf

CHECK_SECONDS = 60.0
"""So often a running run looks at its leaves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaf:
    """The certificate of one process, and who signs it."""

    owner: str
    """A participant, or the coordinator."""
    identity: str
    """The only name in it."""
    folder: Path
    """Where its process reads it."""
    authority: Path
    """Folder of the CA."""

    def renew(self) -> None:
        """Put a new leaf in place; `UsageError` where its CA can't be used."""
        try:
            leaf = issue_leaf(read_authority(self.authority), self.identity)
        except (OSError, ValueError, TypeError) as error:
            reason = getattr(error, "strerror", None) or "is no CA with its key"
            raise UsageError(
                f"{self.authority}: the CA that signs for {self.owner} can't be used: {reason}"
            ) from error
        write_leaf(self.folder, leaf)


class Renewals:
    """Renews leaves while a run goes on; nodes read them again by themselves. `tend` is cheap, call it often."""

    def __init__(
        self,
        leaves: Sequence[Leaf],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leaves = leaves
        self._say = say
        self._clock = clock
        self._next = clock() + CHECK_SECONDS
        self._complained: set[str] = set()

    def tend(self) -> None:
        """Renew what is due, once a minute. What can't be renewed is told once, and tried again."""
        if self._clock() < self._next:
            return
        self._next = self._clock() + CHECK_SECONDS
        for leaf in self._leaves:
            try:
                if renew_due(leaf.folder):
                    leaf.renew()
                    self._complained.discard(leaf.owner)
            except (UsageError, OSError) as error:
                if leaf.owner not in self._complained:
                    self._say(f"{leaf.owner}: its certificate can't be renewed before it expires: {error}")
                    self._complained.add(leaf.owner)
