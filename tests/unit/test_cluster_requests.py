"""What becomes of each answer to a request of the operator: a real HTTP server in the API server's place."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException
from yarl import URL

from pcmoe_operator.access import AGENT, Access
from pcmoe_operator.cluster import ApiRequests, Cluster, ClusterError

BODY: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "notes", "namespace": "here"},
    "data": {"a": "b & c = d"},
}


@asynccontextmanager
async def server(answer: web.Response, seen: list[tuple[web.Request, str]]) -> AsyncIterator[Configuration]:
    """The way to a server that answers everything with `answer`, and puts down in `seen` what it was asked."""

    async def handle(request: web.Request) -> web.Response:
        seen.append((request, await request.text()))
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    configuration = Configuration(host=f"http://{host}:{port}/behind/")
    configuration.api_key["BearerToken"] = "bearer xyz"
    try:
        yield configuration
    finally:
        await runner.cleanup()


def asked(
    answer: web.Response,
    work: Callable[[Cluster], Awaitable[Any]],
    token: Callable[[Configuration], None] = lambda _configuration: None,
) -> list[tuple[web.Request, str]]:
    """What a server was asked that answers everything with `answer`, while `work` is done; `token` reads it anew."""
    seen: list[tuple[web.Request, str]] = []

    async def everything() -> None:
        async with server(answer, seen) as configuration:
            configuration.refresh_api_key_hook = token  # type: ignore[assignment]
            requests = ApiRequests(Access(configuration))
            try:
                await work(Cluster(requests))
            finally:
                await requests.close()

    asyncio.run(everything())
    return seen


def test_a_request_says_who_asks_and_for_what() -> None:
    [(request, text)] = asked(web.json_response({}), lambda cluster: cluster.apply(BODY))
    assert request.method == "PATCH"
    assert request.path_qs == (
        "/behind/api/v1/namespaces/here/configmaps/notes?fieldManager=pcmoe-operator&force=true"
    )
    assert request.headers["Authorization"] == "bearer xyz"
    assert request.headers["User-Agent"] == AGENT
    assert request.headers["Content-Type"] == "application/apply-patch+yaml"
    assert text == '{"apiVersion":"v1","kind":"ConfigMap",' + (
        '"metadata":{"name":"notes","namespace":"here"},"data":{"a":"b & c = d"}}'
    )


def test_a_label_selector_arrives_as_it_was_meant() -> None:
    [(request, _)] = asked(
        web.json_response({"items": []}), lambda cluster: cluster.list("v1", "Pod", "here", "a=b,c in (d, e)")
    )
    assert dict(request.query) == {"labelSelector": "a=b,c in (d, e)"}


def refused(answer: web.Response, work: Callable[[Cluster], Awaitable[Any]]) -> ClusterError:
    """The error that an answer is."""
    with pytest.raises(ClusterError) as caught:
        asked(answer, work)
    return caught.value


@pytest.mark.parametrize("verb", ["apply", "create", "replace"])
def test_an_answer_by_somebody_on_the_way_is_none(verb: str) -> None:
    page = web.Response(text="<html>Log in</html>", content_type="text/html")
    error = refused(page, lambda cluster: getattr(cluster, verb)(BODY))
    assert error.status == 0 and "the answer is no JSON" in str(error)


ELSEWHERE = web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})


def test_nobody_is_followed_to_another_server() -> None:
    assert refused(ELSEWHERE, lambda cluster: cluster.apply(BODY)).status == 307


def test_nobody_is_followed_to_another_server_by_a_watch_either() -> None:
    async def watch() -> None:
        async with server(ELSEWHERE, []) as configuration:
            access = Access(configuration)
            async with access.session() as session:
                with pytest.raises(aiohttp.ClientError, match="not for another server: http://127.0.0.1:1"):
                    await session.get(access.server)

    asyncio.run(watch())


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("https://10.96.0.1:443", "https://10.96.0.1/api"),
        ("https://10.96.0.1", "https://10.96.0.1:443/api"),
        ("https://Cluster.example", "https://cluster.example/api"),
        ("https://[fd00::1]:443", "https://[fd00::1]/api"),
        ("https://cluster.example/behind", "https://cluster.example/behind/api"),
    ],
)
def test_a_server_is_the_same_however_its_address_is_written(host: str, address: str) -> None:
    assert token_for(host, address) == "bearer xyz"


@pytest.mark.parametrize(
    "address",
    ["https://10.96.0.1:6443/api", "http://10.96.0.1:443/api", "https://10.96.0.2/api", "https://other/api"],
)
def test_our_token_is_not_for_another_server(address: str) -> None:
    with pytest.raises(aiohttp.ClientError, match="our token is not for another server"):
        token_for("https://10.96.0.1:443", address)


class DueError(Exception):
    """A request that would be sent now, with its token."""

    def __init__(self, token: str | None) -> None:
        super().__init__(token)
        self.token = token


def token_for(host: str, address: str) -> str | None:
    """The token of a request to `address`, of a session to the cluster at `host`; nothing is sent."""

    async def work() -> str | None:
        configuration = Configuration(host=host)
        configuration.api_key["BearerToken"] = "bearer xyz"

        async def stop(
            request: aiohttp.ClientRequest, _handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            raise DueError(request.headers.get("Authorization"))

        access = Access(configuration)
        async with access.session() as session:
            try:
                await session.get(URL(address, encoded=True), middlewares=(access.authorize, stop))
            except DueError as due:
                return due.token
        raise AssertionError("it was sent")

    return asyncio.run(work())


@pytest.mark.parametrize(
    ("status", "may"), [(200, True), (403, False), (404, False), (429, None), (503, None)]
)
def test_a_namespace_is_shut_only_where_the_server_says_so(status: int, may: bool | None) -> None:
    async def ask(cluster: Cluster) -> None:
        assert await cluster.may_list("v1", "Pod", "here") is may

    [(request, _)] = asked(web.json_response({}, status=status), ask)
    assert dict(request.query) == {"limit": "1"}


def test_the_words_and_the_patience_of_the_server_are_told() -> None:
    status = {"kind": "Status", "message": "too many requests"}
    answer = web.json_response(status, status=429, headers={"Retry-After": "7"})
    error = refused(answer, lambda cluster: cluster.apply(BODY))
    assert (error.status, error.reason, error.retry_after) == (429, "too many requests", 7.0)


@pytest.mark.parametrize("said", ["soon", "", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_patience_that_is_no_number_is_left_to_us(said: str) -> None:
    answer = web.Response(status=503, text="down", headers={"Retry-After": said})
    error = refused(answer, lambda cluster: cluster.apply(BODY))
    assert (error.status, error.reason, error.retry_after) == (503, "Service Unavailable", None)


def test_each_request_has_the_token_of_its_time_and_one_without_a_token_is_not_sent() -> None:
    tokens = iter(["one", "", "two"])

    def read(configuration: Configuration) -> None:
        found = next(tokens)
        if not found:
            raise ConfigException("Token file exists but empty.")
        configuration.api_key["BearerToken"] = f"bearer {found}"

    async def three_times(cluster: Cluster) -> None:
        await cluster.apply(BODY)
        with pytest.raises(ClusterError, match="no token: Token file exists but empty") as caught:
            await cluster.apply(BODY)
        assert caught.value.status == 0
        await cluster.apply(BODY)

    seen = asked(web.json_response({}), three_times, read)
    assert [request.headers["Authorization"] for request, _ in seen] == ["bearer one", "bearer two"]
