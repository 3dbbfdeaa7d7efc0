"""The logs of a consortium's pods as one: in the order of time, and on to whoever takes a pod's place."""

import asyncio
import contextlib
import heapq
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pcmoe_operator.answers import items, part, text_at
from pcmoe_operator.constants import COORDINATOR
from pcmoe_operator.errors import UsageError
from pcmoe_operator.objects.names import CONSORTIUM, PARTICIPANT
from pcmoe_operator.remote.access import CONSORTIA, Access, LogRange
from pcmoe_operator.remote.following import Told, follow, merged
from pcmoe_operator.remote.session import AccessError, NotThereError, Object, RefusedError
from pcmoe_operator.remote.verdict import verdict_of

HOLD_SECONDS = 0.4
"""So long a new line is held back, so that an earlier one of another pod can go before it."""
AGAIN_SECONDS = 1.0
"""After which a log that has ended, or is not there yet, is asked for again while its pod lives."""
OVER = ("Succeeded", "Failed")
WAITING = "waiting to start"
"""What the API server says of a container that has not started."""
FRACTION = re.compile(r"\.(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line of somebody's log."""

    at: int
    """Nanoseconds since 1970; 0 where the line says no time."""
    time: str
    """The same as the kubelet wrote it."""
    participant: str
    pod: str
    text: str


def parse(line: str, participant: str, pod: str) -> Line:
    """A line that the API server put a time before."""
    moment, _, text = line.partition(" ")
    at = nanoseconds(moment)
    if at is None:
        return Line(at=0, time="", participant=participant, pod=pod, text=line)
    return Line(at=at, time=moment, participant=participant, pod=pod, text=text)


def nanoseconds(moment: str) -> int | None:
    """RFC 3339 with up to nine digits of a second, any offset; None if it is something else."""
    fraction = FRACTION.search(moment)
    try:
        whole = datetime.fromisoformat(FRACTION.sub("", moment, count=1))
    except ValueError:
        return None
    if whole.tzinfo is None:
        return None
    return int(whole.timestamp()) * 10**9 + (int(fraction[1][:9].ljust(9, "0")) if fraction else 0)


def whose(pod: Object) -> str:
    """The participant that a pod belongs to, or the coordinator."""
    return text_at(part(pod, "metadata", "labels"), PARTICIPANT) or COORDINATOR


def seconds_of(text: str) -> int:
    """`90s`, `10m`, `2h`, `1d` or a number of seconds; `UsageError` for anything else."""
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", text.strip())
    if found is None or int(found[1]) == 0:
        raise UsageError(f"--since {text}: is no time; say 90s, 10m, 2h or 1d")
    return int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def members(consortium: Object) -> list[str]:
    """Every participant, and the coordinator."""
    agreed = items(part(consortium, "spec", "agreement"), "participants")
    return [text_at(each, "name") for each in agreed] + [COORDINATOR]


def chosen(consortium: Object, names: Sequence[str]) -> frozenset[str]:
    """The members asked for; all if none is named. `UsageError` for a name that isn't there."""
    known = members(consortium)
    for name in names:
        if name not in known:
            raise UsageError(f"no participant {name}; there are: {', '.join(known)}")
    return frozenset(names or known)


async def lines(
    access: Access, name: str, names: Sequence[str], wanted: LogRange, note: Callable[[str], None]
) -> AsyncGenerator[Line]:
    """What `pcmoe logs` prints: what the logs hold, and with `follow` what comes. `note` hears what can't be read."""
    whom = chosen(await access.consortium(name), names)
    pods = [pod for pod in await access.pods(name) if whose(pod) in whom]
    for missing in sorted(set(names) - {whose(pod) for pod in pods}):
        note(f"{missing}: has no pod in namespace {access.namespace} now")
    following = Following(access, name, whom, wanted, note)
    async with contextlib.aclosing(backlog(access, pods, wanted, note)) as held:
        async for line in held:
            following.told(line)
            yield line
    if wanted.follow:
        async with contextlib.aclosing(following.run()) as coming:
            async for line in coming:
                yield line


async def backlog(
    access: Access, pods: Sequence[Object], wanted: LogRange, note: Callable[[str], None]
) -> AsyncGenerator[Line]:
    """What the logs hold now, by time. `note` hears of those that can't be read."""
    streams = [_stream(access, pod, replace(wanted, follow=False, timestamps=True), note) for pod in pods]
    try:
        heads = await asyncio.gather(*(anext(stream, None) for stream in streams), return_exceptions=True)
        heap = []
        for place, head in enumerate(heads):
            if isinstance(head, BaseException):
                raise head
            if head is not None:
                heap.append((head.at, place, head))
        heapq.heapify(heap)
        while heap:
            at, place, line = heap[0]
            yield line
            following = await anext(streams[place], None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (max(at, following.at), place, following))
    finally:
        for stream in streams:
            await stream.aclose()


async def _stream(
    access: Access, pod: Object, wanted: LogRange, note: Callable[[str], None]
) -> AsyncGenerator[Line]:
    name = pod["metadata"]["name"]
    try:
        async with contextlib.aclosing(access.logs(name, wanted)) as lines:
            async for line in lines:
                yield parse(line, whose(pod), name)
    except RefusedError:
        raise
    except AccessError as error:  # one machine that doesn't answer leaves the logs of the others
        note(f"{whose(pod)}: no log: {error.said or error}")


class Following:
    """All logs of a consortium, from now on; see `run`. `note` hears what can't be read."""

    def __init__(
        self, access: Access, name: str, names: frozenset[str], wanted: LogRange, note: Callable[[str], None]
    ) -> None:
        self._access, self._name, self._names, self._note = access, name, names, note
        self._wanted = replace(wanted, follow=True, timestamps=True)
        self._last: dict[str, int] = {}
        """The moment of the newest line told, by pod."""
        self._pods: dict[str, Object] = {}
        """Those that live, by name."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._held: list[tuple[int, int, float, Line]] = []
        """A heap by time; with a number that keeps the order, and the moment of arrival."""
        self._count = 0
        self._troubled: set[str] = set()
        """Pods whose trouble was told."""
        self._over = False

    def told(self, line: Line) -> None:
        """A line that has been shown already."""
        self._last[line.pod] = max(self._last.get(line.pod, 0), line.at)

    async def run(self) -> AsyncGenerator[Line]:
        """Lines as they come, until the consortium has ended and all logs too."""
        look = asyncio.ensure_future(self._look())
        try:
            while True:
                await asyncio.sleep(HOLD_SECONDS / 2)  # the beat in which lines are let go
                for line in self._due(time.monotonic() - HOLD_SECONDS):
                    yield line
                if look.done():
                    look.result()
                for task in self._tasks.values():
                    if task.done():
                        task.result()
                if self._over and all(task.done() for task in self._tasks.values()) and not self._held:
                    return
        finally:
            running = [look, *self._tasks.values()]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _due(self, before: float) -> list[Line]:
        """Lines that arrived before a moment, and all that are older than one of those."""
        newest = max((at for at, _, arrived, _ in self._held if arrived <= before), default=None)
        found = []
        while newest is not None and self._held and self._held[0][0] <= newest:
            found.append(heapq.heappop(self._held)[3])
        return found

    async def _look(self) -> None:
        """Start following every pod that comes, and notice the end."""
        pods = follow(self._access, "pods", labels=f"{CONSORTIUM}={self._name}")
        consortium = follow(self._access, CONSORTIA, fields=f"metadata.name={self._name}")
        async with contextlib.aclosing(merged(pods, consortium)) as all_told:
            async for told in all_told:
                if told.lost:
                    self._note(f"{told.lost}; it is tried again every second")
                elif told.object is not None:
                    self._heard(told, told.object)

    def _heard(self, told: Told, seen: Object) -> None:
        if told.resource == CONSORTIA:
            self._over = told.gone or verdict_of(seen).end is not None
            return
        name = seen["metadata"]["name"]
        if told.gone:
            self._pods.pop(name, None)
        elif whose(seen) in self._names:
            self._pods[name] = seen
            if name not in self._tasks:
                self._tasks[name] = asyncio.ensure_future(self._follow(name, whose(seen)))

    async def _follow(self, pod: str, participant: str) -> None:
        """One pod's log over all lives of its container."""
        while True:
            lives = pod in self._pods and text_at(self._pods[pod], "status", "phase") not in OVER
            try:
                async with contextlib.aclosing(self._access.logs(pod, self._range(pod))) as lines:
                    async for text in lines:
                        self._take(parse(text, participant, pod))
            except NotThereError:
                return
            except RefusedError:
                raise
            except AccessError as error:
                if WAITING not in error.said and pod not in self._troubled:
                    self._troubled.add(pod)
                    self._note(f"{participant}: {error.said or error}; it is tried again every second")
            if not lives:
                return
            await asyncio.sleep(AGAIN_SECONDS)

    def _range(self, pod: str) -> LogRange:
        """From the newest line on; the API knows only whole seconds, so some come again."""
        last = self._last.get(pod)
        if last is None:
            return self._wanted
        moment = datetime.fromtimestamp(last // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return LogRange(follow=True, timestamps=True, since_time=moment)

    def _take(self, line: Line) -> None:
        if line.at and line.at <= self._last.get(line.pod, 0):
            return
        self.told(line)
        self._count += 1
        heapq.heappush(self._held, (line.at, self._count, time.monotonic(), line))


def shown(line: Line) -> dict[str, Any]:
    """A line as `-o json` gives it."""
    return {"time": line.time or None, "participant": line.participant, "pod": line.pod, "line": line.text}
