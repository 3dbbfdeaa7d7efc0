"""A queue of keys: one worker at a time for each, however often it is added meanwhile; failures back off."""

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field

FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 300.0
CHANGED_BACKOFF = 5.0
"""A key that fails is tried again sooner where something has changed, but not sooner than that, nor than asked for."""
LONGEST_WORK = 600.0
"""Work on one key that takes longer is ended as a failure, so that it can't keep a worker for ever."""
Work = Callable[[Hashable], Awaitable[float | None]]
"""Works on one key; returns the seconds after which to look again, or None. An exception backs off."""


@dataclass(slots=True)
class _Entry:
    due: float
    added: float
    failures: int = 0
    not_before: float = -math.inf
    """After a failure: whatever happens, it is not worked on before then."""
    working: bool = False
    again: float | None = None
    """Added while it was worked on: due then."""


@dataclass(slots=True)
class WorkQueue:
    """Coalescing, with back-off per key."""

    clock: Callable[[], float] = time.monotonic
    _entries: dict[Hashable, _Entry] = field(default_factory=dict)
    _finished: float = -math.inf
    """When work on any key last came to an end."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, key: Hashable, after: float = 0.0) -> None:
        """Have a key worked on in `after` seconds, or sooner if it is due sooner."""
        due, entry = self.clock() + after, self._entries.get(key)
        if entry is None:
            self._entries[key] = _Entry(due=due, added=self.clock())
        elif entry.working:
            entry.again = due if entry.again is None else min(entry.again, due)
        else:
            entry.due = min(entry.due, max(due, entry.not_before))
        self._changed.set()

    @property
    def oldest_seconds(self) -> float:
        """For how long the most overdue key has been waiting."""
        now = self.clock()
        return max(
            (now - e.due for e in self._entries.values() if not e.working and e.due <= now), default=0.0
        )

    @property
    def stalled_seconds(self) -> float:
        """For how long a key has been waiting while no worker finished anything: a long queue that moves is none."""
        return min(self.oldest_seconds, self.clock() - self._finished)

    def __len__(self) -> int:
        return len(self._entries)

    async def run(
        self, work: Work, workers: int, failed: Callable[[Hashable, Exception], float | None]
    ) -> None:
        """Work for ever. `failed(key, error)` hears of each failure and may say how long to wait."""
        await asyncio.gather(*(self._worker(work, failed) for _ in range(workers)))

    async def _worker(self, work: Work, failed: Callable[[Hashable, Exception], float | None]) -> None:
        while True:
            key = await self._next()
            entry = self._entries[key]
            try:
                async with asyncio.timeout(LONGEST_WORK):
                    after = await work(key)
                entry.failures, entry.not_before = 0, -math.inf
            except Exception as error:
                entry.failures += 1
                asked = failed(key, error)
                longest = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(entry.failures - 1, 20))
                after = longest * random.uniform(0.5, 1.0) if asked is None else asked
                entry.not_before = self.clock() + (min(after, CHANGED_BACKOFF) if asked is None else asked)
            self._finished = self.clock()
            self._done(key, entry, after)

    def _done(self, key: Hashable, entry: _Entry, after: float | None) -> None:
        times = [] if after is None else [self.clock() + after]
        if entry.again is not None:
            times.append(max(entry.again, entry.not_before))
        if not times:
            del self._entries[key]
            return
        entry.due, entry.again, entry.working = min(times), None, False
        self._changed.set()

    async def _next(self) -> Hashable:
        while True:
            self._changed.clear()
            waiting = [(entry.due, key) for key, entry in self._entries.items() if not entry.working]
            due, key = min(waiting, key=lambda each: each[0], default=(None, None))
            if due is not None and key is not None:
                left = due - self.clock()
                if left <= 0:
                    self._entries[key].working = True
                    return key
            with contextlib.suppress(TimeoutError):
                # Not wait_for: in Python 3.11 that can swallow a cancellation.
                async with asyncio.timeout(None if due is None else max(0.0, left)):
                    await self._changed.wait()
