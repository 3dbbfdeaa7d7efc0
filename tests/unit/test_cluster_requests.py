"""What becomes of each answer to a request of the operator: a real HTTP server in the API server's place."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException

from pcmoe_operator.access import AGENT, Access
from pcmoe_operator.cluster import ApiRequests, Cluster, ClusterError

BODY: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "notes", "namespace": "here"},
    "data": {"a": "b & c = d"},
}


def asked(
    answer: web.Response,
    work: Callable[[Cluster], Awaitable[Any]],
    token: Callable[[Configuration], None] = lambda _configuration: None,
) -> list[tuple[web.Request, str]]:
    """What a server was asked that answers everything with `answer`, while `work` is done; `token` reads it anew."""
    seen: list[tuple[web.Request, str]] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append((request, await request.text()))
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    async def everything() -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        configuration = Configuration(host=f"http://{host}:{port}/behind/")
        configuration.api_key["BearerToken"] = "bearer xyz"
        configuration.refresh_api_key_hook = token  # type: ignore[assignment]
        requests = ApiRequests(Access(configuration))
        try:
            await work(Cluster(requests))
        finally:
            await requests.close()
            await runner.cleanup()

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


def test_nobody_is_followed_to_another_server() -> None:
    elsewhere = web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})
    assert refused(elsewhere, lambda cluster: cluster.apply(BODY)).status == 307


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
