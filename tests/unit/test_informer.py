"""What is told of a resource that is listed and watched, whatever happens to listing and watch: a real HTTP server."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from pcmoe_operator import informer, watch_session
from pcmoe_operator.informer import Informer, Source

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
SECONDS = 1
KIND = {"kind": "Job", "apiVersion": "batch/v1"}


def job(name: str, uid: str = "", version: int = 1) -> dict[str, Any]:
    """A Job as the API server has it; its uid is its name unless it is another's."""
    metadata = {"name": name, "uid": uid or name, "namespace": "here", "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {}, "status": {}}


def listing(*items: dict[str, Any], more: str = "", version: int = 1) -> Answer:
    """A page."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        metadata = {"resourceVersion": str(version), **({"continue": more} if more else {})}
        return web.json_response({"kind": "JobList", "metadata": metadata, "items": list(items)})

    return answer


def watch(*events: tuple[str, dict[str, Any]], ends: bool = True, cut: int = 0) -> Answer:
    """A watch with these events, in chunks of `cut` bytes; it stays open unless it `ends`."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        whole = [{"type": kind, "object": {**KIND, **seen}} for kind, seen in events]
        text = b"".join(json.dumps(event).encode() + b"\n" for event in whole)
        for start in range(0, len(text), cut or max(1, len(text))):
            await response.write(text[start : start + (cut or len(text))])
            await asyncio.sleep(0)
        if not ends:
            await asyncio.sleep(60)
        return response

    return answer


def refusal(status: int) -> Answer:
    """An answer that is none."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response({"code": status}, status=status)

    return answer


async def reset(request: web.Request) -> web.StreamResponse:
    """The connection breaks."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


GONE = ("ERROR", {"code": 410, "reason": "Expired"})


class Told:
    """What an informer told, and what it asked for."""

    def __init__(self) -> None:
        self.events: list[tuple[str | None, str]] = []
        self.asked: list[dict[str, str]] = []
        self.restarts = 0

    def saw(self, event: str | None, seen: dict[str, Any]) -> None:
        """As the world would hear of it."""
        assert (seen["kind"], seen["apiVersion"]) == ("Job", "batch/v1")
        self.events.append((event, seen["metadata"]["uid"]))

    def restarted(self) -> None:
        """It lists anew."""
        self.restarts += 1

    @property
    def watches(self) -> list[str]:
        """From which version each watch went on."""
        return [query["resourceVersion"] for query in self.asked if "watch" in query]


@asynccontextmanager
async def served(answers: Sequence[Answer], told: Told) -> AsyncIterator[str]:
    """A server that answers so, one request after the other, and then with watches that stay open."""
    left = list(answers)

    async def handle(request: web.Request) -> web.StreamResponse:
        told.asked.append(dict(request.query))
        return await (left.pop(0) if left else watch(ends=False))(request)

    application = web.Application()
    application.router.add_get("/jobs", handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    try:
        yield f"http://{host}:{port}/jobs"
    finally:
        await runner.cleanup()


def hear(*answers: Answer, until: Callable[[Told], bool]) -> Told:
    """Everything that is told of these answers until all of what is waited for was."""

    async def everything() -> Told:
        told = Told()
        async with (
            served(answers, told) as url,
            aiohttp.ClientSession(response_class=watch_session.Page) as session,
        ):
            source = Source(url=url, kind=("batch/v1", "Job"), label="ours", seconds=SECONDS)
            made = Informer(session, source, told.saw, told.restarted)
            task = asyncio.create_task(made.run())
            try:
                async with asyncio.timeout(10):
                    while not until(told):
                        assert not task.done(), task.exception()
                        await asyncio.sleep(0.01)
                assert made.listed.is_set()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        return told

    return asyncio.run(everything())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that a test can wait for."""
    monkeypatch.setattr(watch_session.Backoffs, "__iter__", lambda _self: iter([0.02] * 1000))
    monkeypatch.setattr(informer, "SHORT_SECONDS", 0.05)


def test_what_is_there_is_told_page_by_page_and_then_what_changes() -> None:
    told = hear(
        listing(job("a"), more="next"),
        listing(job("b"), version=7),
        watch(("ADDED", job("c", version=8)), ("DELETED", job("a", version=9)), ends=False),
        until=lambda told: len(told.events) == 4,
    )
    assert told.events == [(None, "a"), (None, "b"), ("ADDED", "c"), ("DELETED", "a")]
    assert told.asked[0] == {"labelSelector": "ours", "limit": "500"}
    assert told.asked[1]["continue"] == "next"
    assert told.watches == ["7"] and told.asked[2]["timeoutSeconds"] == str(SECONDS)


@pytest.mark.parametrize("cut", [1, 7, 100])
def test_an_event_may_come_in_pieces(cut: int) -> None:
    events = [("MODIFIED", job("a", version=number)) for number in range(2, 6)]
    told = hear(listing(job("a")), watch(*events, cut=cut), until=lambda told: len(told.watches) == 2)
    assert told.events == [(None, "a")] + 4 * [("MODIFIED", "a")]


def test_a_watch_goes_on_where_the_last_one_ended_also_by_bookmarks() -> None:
    bookmark = {"metadata": {"resourceVersion": "30"}}
    told = hear(
        listing(version=3),
        watch(("ADDED", job("a", version=20))),
        watch(("BOOKMARK", bookmark)),
        until=lambda told: len(told.watches) == 3,
    )
    assert told.watches == ["3", "20", "30"]
    assert told.events == [("ADDED", "a")] and told.restarts == 0


@pytest.mark.parametrize("trouble", [refusal(403), refusal(429), refusal(500), reset, watch()])
def test_a_watch_that_fails_is_opened_again_from_where_it_was(trouble: Answer) -> None:
    told = hear(
        listing(version=3),
        watch(("ADDED", job("a", version=4))),
        trouble,
        trouble,
        until=lambda told: len(told.watches) == 4,
    )
    assert told.watches == ["3", "4", "4", "4"] and told.restarts == 0


def test_a_silent_watch_is_dead() -> None:
    told = hear(listing(version=3), watch(ends=False), until=lambda told: len(told.watches) == 2)
    assert told.watches == ["3", "3"]


@pytest.mark.parametrize("lost", [watch(GONE), refusal(410), watch(("ERROR", {"code": 500}))])
def test_what_is_gone_unseen_is_told_once_the_place_was_lost(lost: Answer) -> None:
    told = hear(
        listing(job("a"), job("b"), job("c")),
        lost,
        listing(job("b"), job("c", uid="another"), version=9),
        until=lambda told: len(told.watches) == 2,
    )
    assert told.events[3:] == [("DELETED", "a"), ("DELETED", "c"), (None, "b"), (None, "another")]
    assert told.restarts == 1 and told.watches == ["1", "9"]


@pytest.mark.parametrize("trouble", [[refusal(500)], [refusal(410)], [reset, reset]])
def test_a_listing_that_fails_halfway_begins_anew_and_nothing_of_it_is_told(trouble: list[Answer]) -> None:
    """Over a connection that was used before, aiohttp asks once more by itself where it breaks."""
    told = hear(
        listing(job("a"), more="next"),
        *trouble,
        listing(job("b")),
        until=lambda told: bool(told.watches),
    )
    assert told.events == [(None, "b")]
    assert "continue" not in told.asked[-2]


def test_a_place_that_is_lost_again_and_again_makes_no_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer, "SHORT_SECONDS", 0.3)
    began = time.monotonic()
    lost = [listing(), watch(GONE)] * 3
    told = hear(*lost, listing(), until=lambda told: len(told.watches) == 4)
    assert told.restarts == 3
    assert time.monotonic() - began >= 0.9
