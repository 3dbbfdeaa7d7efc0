"""The operator's queue: every key is worked on once at a time, and again when something changed meanwhile."""

import asyncio
import time
from collections.abc import Hashable

import pytest

from pcmoe_operator import workqueue
from pcmoe_operator.workqueue import CHANGED_BACKOFF, Work, WorkQueue


def run_until(
    queue: WorkQueue, work: Work, done: "asyncio.Event | None" = None, seconds: float = 1.0
) -> None:
    """Run workers until `done`, or for so long."""

    async def everything() -> None:
        task = asyncio.create_task(queue.run(work, 2, lambda _key, _error: None))
        try:
            if done is None:
                await asyncio.sleep(seconds)
            else:
                await asyncio.wait_for(done.wait(), 5.0)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(everything())


def test_a_key_that_is_added_many_times_is_worked_on_once() -> None:
    queue = WorkQueue()
    worked: list[str] = []

    async def work(key: Hashable) -> None:
        worked.append(str(key))

    for _ in range(10):
        queue.add("a")
    queue.add("b")
    run_until(queue, work, seconds=0.1)
    assert sorted(worked) == ["a", "b"]
    assert len(queue) == 0


def test_a_key_that_is_added_while_it_is_worked_on_is_worked_on_again_and_never_by_two() -> None:
    queue, done = WorkQueue(), asyncio.Event()
    busy, rounds = 0, 0

    async def work(key: Hashable) -> None:
        nonlocal busy, rounds
        busy += 1
        assert busy == 1
        rounds += 1
        if rounds == 1:
            queue.add(key)
        await asyncio.sleep(0.05)
        busy -= 1
        if rounds == 2:
            done.set()

    queue.add("a")
    run_until(queue, work, done)
    assert rounds == 2


def test_keys_are_worked_on_in_the_order_in_which_they_are_due() -> None:
    now = 0.0
    queue = WorkQueue(clock=lambda: now)
    worked: list[str] = []

    async def work(key: Hashable) -> None:
        worked.append(str(key))

    queue.add("late", after=4.0)
    queue.add("sooner", after=9.0)
    queue.add("first", after=1.0)
    queue.add("sooner", after=2.0)
    queue.add("late", after=8.0)  # it is due already by then
    now = 5.0
    run_until(queue, work, seconds=0.1)
    assert worked == ["first", "sooner", "late"]


class Seconds(float):
    """A time that counts how often it is compared with another."""

    compared = 0

    def __add__(self, other: float) -> "Seconds":
        return Seconds(float(self) + other)

    def __lt__(self, other: float) -> bool:
        Seconds.compared += 1
        return float(self) < float(other)


def test_a_thousand_keys_that_wait_make_a_change_hardly_dearer_than_ten() -> None:
    def comparisons_per_change(waiting: int) -> float:
        queue = WorkQueue(clock=lambda: Seconds(time.monotonic()))
        worked = 0

        async def work(_key: Hashable) -> float:
            nonlocal worked
            worked += 1
            return 100.0

        async def changes() -> None:
            task = asyncio.create_task(queue.run(work, 8, lambda _key, _error: None))
            for number in range(waiting):
                queue.add(number)
            while worked < waiting:
                await asyncio.sleep(0.01)
            Seconds.compared = 0
            for number in range(10):
                queue.add(number)
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(changes())
        assert worked == waiting + 10
        return Seconds.compared / 10

    assert 0 < comparisons_per_change(1000) < 10 * comparisons_per_change(10)


def test_a_key_that_fails_backs_off_and_is_forgotten_once_it_succeeds() -> None:
    now = 0.0
    queue = WorkQueue(clock=lambda: now)
    waits: list[float] = []

    async def attempts() -> None:
        nonlocal now
        queue.add("a")
        failures = 0

        async def work(_key: Hashable) -> None:
            nonlocal failures
            failures += 1
            if failures < 6:
                raise RuntimeError("planted")

        task = asyncio.create_task(queue.run(work, 1, lambda _key, _error: None))
        for _ in range(200):
            await asyncio.sleep(0)
            if not queue._entries:
                break
            entry = queue._entries["a"]
            if not entry.working and entry.due > now:
                waits.append(entry.due - now)
                now = entry.due
                queue._changed.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(attempts())
    assert len(waits) == 5
    for number, wait in enumerate(waits):
        assert 0.25 * 2**number <= wait <= 0.5 * 2**number, waits


def test_a_change_does_not_cut_a_back_off_short() -> None:
    now = 0.0
    queue = WorkQueue(clock=lambda: now)

    async def attempts() -> None:
        async def work(key: Hashable) -> None:
            queue.add(key)
            raise RuntimeError("planted")

        queue.add("a")
        task = asyncio.create_task(queue.run(work, 1, lambda _key, _error: 7.0))
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(attempts())
    assert queue._entries["a"].due == 7.0


def test_work_that_asks_to_be_looked_at_again_is_due_then_unless_something_changes_sooner() -> None:
    now = 0.0
    queue = WorkQueue(clock=lambda: now)

    async def once() -> None:
        async def work(_key: Hashable) -> float:
            return 30.0

        queue.add("a")
        task = asyncio.create_task(queue.run(work, 1, lambda _key, _error: None))
        for _ in range(20):
            await asyncio.sleep(0)
        assert queue._entries["a"].due == 30.0
        queue.add("a", after=5.0)
        assert queue._entries["a"].due == 5.0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(once())


def test_the_age_of_the_queue_is_that_of_the_most_overdue_key() -> None:
    now = 10.0
    queue = WorkQueue(clock=lambda: now)
    queue.add("a")
    queue.add("b", after=5.0)
    now = 13.0
    assert queue.oldest_seconds == 3.0


def test_a_pause_that_the_server_asks_for_is_kept_whatever_changes() -> None:
    now = 0.0
    queue = WorkQueue(clock=lambda: now)

    async def once() -> None:
        async def work(_key: Hashable) -> None:
            raise RuntimeError("planted")

        queue.add("a")
        task = asyncio.create_task(queue.run(work, 1, lambda _key, _error: 30.0))
        for _ in range(20):
            await asyncio.sleep(0)
        queue.add("a")
        assert queue._entries["a"].due == 30.0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(once())


def test_a_change_cuts_a_long_back_off_of_our_own_to_a_few_seconds() -> None:
    now = 0.0
    queue = WorkQueue(clock=lambda: now)

    async def attempts() -> None:
        nonlocal now

        async def work(_key: Hashable) -> None:
            raise RuntimeError("planted")

        queue.add("a")
        task = asyncio.create_task(queue.run(work, 1, lambda _key, _error: None))
        for _ in range(12):
            for _ in range(20):
                await asyncio.sleep(0)
            now = queue._entries["a"].due
            queue._changed.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert queue._entries["a"].due - now > 100
        queue.add("a")
        assert queue._entries["a"].due - now == CHANGED_BACKOFF
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(attempts())


def test_a_queue_is_stalled_only_if_a_key_waits_and_nothing_is_finished() -> None:
    now = 100.0
    queue = WorkQueue(clock=lambda: now)
    assert queue.stalled_seconds == 0.0
    queue.add("a")
    now = 140.0
    assert queue.stalled_seconds == 40.0
    queue._finished = 130.0
    assert queue.stalled_seconds == 10.0


def test_work_that_never_ends_is_ended_and_counts_as_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workqueue, "LONGEST_WORK", 0.05)
    queue, done = WorkQueue(), asyncio.Event()
    failures: list[Exception] = []

    async def work(_key: Hashable) -> None:
        await asyncio.sleep(60)

    def failed(_key: Hashable, error: Exception) -> None:
        failures.append(error)
        done.set()

    async def once() -> None:
        queue.add("a")
        task = asyncio.create_task(queue.run(work, 1, failed))
        await asyncio.wait_for(done.wait(), 5.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(once())
    assert isinstance(failures[0], TimeoutError)
