"""A queue of keys: one worker at a time for each, however often it is added meanwhile; failures back off."""

import asyncio
import contextlib
import heapq
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator
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
    failures: int = 0
    not_before: float = -math.inf
    """After a failure: whatever happens, it is not worked on before then."""
    working: bool = False
    again: float | None = None
    """Added while it was worked on: due then."""


@dataclass(slots=True)
class WorkQueue:
    """Coalescing, with back-off per key. What it costs hardly grows with the number of keys that wait."""

    clock: Callable[[], float] = time.monotonic
    _entries: dict[Hashable, _Entry] = field(default_factory=dict)
    _line: list[tuple[float, int, Hashable]] = field(default_factory=list)
    """A heap of (due, number, key); what doesn't agree with its entry any more is dropped when it comes first."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    """Of two that are due at once the first comes first; keys need no order."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the one worker that waits for the next key: a change need not wake all of them."""
    _finished: float = -math.inf
    """When work on any key last came to an end."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, key: Hashable, after: float = 0.0) -> None:
        """Have a key worked on in `after` seconds, or sooner if it is due sooner."""
        due, entry = self.clock() + after, self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(due=due)
            self._line_up(key, entry)
        elif entry.working:
            entry.again = due if entry.again is None else min(entry.again, due)
        elif (sooner := max(due, entry.not_before)) < entry.due:
            entry.due = sooner
            self._line_up(key, entry)

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
        self._line_up(key, entry)

    def _line_up(self, key: Hashable, entry: _Entry) -> None:
        heapq.heappush(self._line, (entry.due, next(self._numbers), key))
        if self._line[0][0] == entry.due:
            self._changed.set()

    async def _next(self) -> Hashable:
        async with self._turn:
            while True:
                self._changed.clear()
                key, left = self._first()
                if left is not None and left <= 0:
                    heapq.heappop(self._line)
                    self._entries[key].working = True
                    return key
                with contextlib.suppress(TimeoutError):
                    # Not wait_for: in Python 3.11 that can swallow a cancellation.
                    async with asyncio.timeout(left):
                        await self._changed.wait()

    def _first(self) -> tuple[Hashable, float | None]:
        """The key that is due next, and in how many seconds; None: there is no key."""
        while self._line:
            due, _, key = self._line[0]
            entry = self._entries.get(key)
            if entry is not None and not entry.working and entry.due == due:
                return key, due - self.clock()
            heapq.heappop(self._line)
        return None, None
