"""How long changes are gathered before a look, and what pods are heard to say."""

import asyncio

import aiohttp
import pytest
from aiohttp import web

from pcmoe_operator.leading import MAX_ANSWER, ask, burst_seconds


@pytest.mark.parametrize(
    ("consortia", "seconds"), [(0, 0.2), (1, 0.2), (50, 0.2), (125, 0.5), (250, 1.0), (5000, 1.0)]
)
def test_more_changes_are_waited_for_where_there_are_many_consortia(consortia: int, seconds: float) -> None:
    assert burst_seconds(consortia) == seconds


@pytest.mark.parametrize("length", [1, MAX_ANSWER // 2, MAX_ANSWER])
def test_an_answer_that_arrives_in_pieces_is_heard_to_its_end_or_the_limit(length: int) -> None:
    async def in_pieces(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for letter in (b"a", b"b"):
            await answer.write(letter * length)
            await asyncio.sleep(0.05)  # what was written is on its way by itself
        return answer

    async def heard() -> bytes | None:
        application = web.Application()
        application.router.add_get("/status", in_pieces)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        try:
            async with aiohttp.ClientSession() as session:
                return await ask(session, f"http://{host}:{port}/status")
        finally:
            await runner.cleanup()

    assert asyncio.run(heard()) == (b"a" * length + b"b" * length)[:MAX_ANSWER]
