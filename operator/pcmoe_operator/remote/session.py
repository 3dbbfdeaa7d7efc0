"""One session with an API server: requests with a deadline, answers line by line, every failure a sentence."""

import asyncio
import contextlib
import json
import re
import socket
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from pcmoe_operator.constants import API_VERSION, KIND
from pcmoe_operator.errors import OperatorError
from pcmoe_operator.remote.kubeconfig import Way

Object = dict[str, Any]
REQUEST_SECONDS = 10.0
OURS = f"/apis/{API_VERSION}"
REFUSED = re.compile(r'User "([^"]*)" cannot (\S+) resource "([^"]+)" in API group "([^"]*)"')


class AccessError(OperatorError):
    """A cluster that says no, or nothing. `status` is HTTP's; 0: there was no answer."""

    exit_code = 70

    def __init__(self, message: str, status: int, said: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.said = said
        """The server's own words; empty where it has none."""


class NoAnswerError(AccessError):
    """The API server, or the pod behind it, can't be reached or is too slow."""

    exit_code = 75


class RefusedError(AccessError):
    """The credentials are not taken, or RBAC refuses a verb on a resource; the message says which."""

    exit_code = 77


class NotThereError(AccessError):
    """What was asked for is not there, or the CRD isn't."""

    exit_code = 66


class NoCRDError(NotThereError):
    """The cluster has never heard of consortia."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request."""

    path: str
    method: str = "GET"
    query: Mapping[str, str] = field(default_factory=dict)
    body: Object | None = None
    content_type: str = "application/json"
    accept: str = "application/json, */*"


class Session:
    """Requests to one API server."""

    def __init__(self, client: aiohttp.ClientSession, way: Way) -> None:
        self._client = client
        self._way = way
        self._proxy = _proxy_of(way)
        self.namespace = way.namespace
        self.server = way.server
        self.context = way.context

    async def fetch(self, asked: Asked, seconds: float = REQUEST_SECONDS, most: int | None = None) -> bytes:
        """The whole answer, within so many seconds; one of more than `most` bytes is an `AccessError`."""
        try:
            async with asyncio.timeout(seconds), self._answer(asked, seconds) as answer:
                return await (answer.read() if most is None else _at_most(answer, most))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._silence(asked.path, error, seconds) from error

    async def lines(self, asked: Asked, quiet: float | None) -> AsyncGenerator[bytes]:
        """The lines of an answer as they come; `quiet`: so many seconds may pass without a byte."""
        rest = b""
        try:
            async with self._answer(asked, REQUEST_SECONDS, quiet) as answer:
                async for piece in answer.content.iter_any():
                    *whole, rest = (rest + piece).split(b"\n")
                    for line in whole:
                        yield line
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._silence(asked.path, error, quiet or REQUEST_SECONDS) from error
        if rest:
            yield rest

    @contextlib.asynccontextmanager
    async def _answer(
        self, asked: Asked, seconds: float, quiet: float | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer whose status is fine; its headers are there within `seconds`."""
        for anew in (False, True):
            typed = {"Content-Type": asked.content_type} if asked.body is not None else {}
            async with asyncio.timeout(seconds):
                answer = await self._client.request(
                    asked.method,
                    self._way.server + asked.path,
                    params=asked.query,
                    headers={"Accept": asked.accept, **typed, **self._way.headers(anew=anew)},
                    data=None if asked.body is None else json.dumps(asked.body),
                    proxy=self._proxy,
                    ssl=self._way.tls or True,
                    server_hostname=self._way.server_name,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=quiet),
                )
            async with answer:
                if answer.status == 401 and not anew:
                    continue  # a token may have expired since
                if not 200 <= answer.status < 300:
                    raise await self._error(asked.path, answer)
                yield answer
                return

    # Failures

    async def _error(self, path: str, answer: aiohttp.ClientResponse) -> AccessError:
        """The server's no as a sentence."""
        said = _said(await answer.content.read(64 * 1024))
        message = str(said.get("message") or answer.reason or "")[:1000]
        if answer.status == 401:
            return RefusedError(f"{self.server} doesn't take these credentials: log in again", 401)
        if answer.status == 403:
            return RefusedError(_forbidden(message, self.namespace), 403)
        if answer.status == 404:
            details = said.get("details") or {}
            if path.startswith(OURS) and not details.get("name"):
                return NoCRDError(
                    f"the cluster doesn't know {KIND}: the CRD is not installed; apply manifests/crd.yaml, or "
                    "install the chart",
                    404,
                )
            return NotThereError(message, 404)
        if answer.status in (502, 503, 504):
            return NoAnswerError(f"{path}: {message}", answer.status)
        return AccessError(f"{path}: {answer.status}: {message}", answer.status, message)

    def _silence(self, path: str, error: Exception, seconds: float) -> NoAnswerError:
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return NoAnswerError(f"{self.server} proves to be somebody else: {error.certificate_error}", 0)
        if isinstance(error, TimeoutError):
            return NoAnswerError(f"{self.server} didn't answer within {seconds:g} s: {path}", 0)
        return NoAnswerError(f"{self.server} can't be reached: {_cause(error)}", 0)


async def _at_most(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """An answer from whoever may send too much."""
    held = bytearray()
    async for piece in answer.content.iter_any():
        held += piece
        if len(held) > most:
            raise AccessError(f"{answer.url.path}: the answer is larger than {most // 2**20} MiB", 0)
    return bytes(held)


def _cause(error: Exception) -> str:
    """Why there is no connection, or no more."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "nobody knows its name"
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.strerror:
        return error.os_error.strerror
    if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, ConnectionError)):
        return "it has closed the connection"
    return str(error) or type(error).__name__


def open_socket(address: Any) -> socket.socket:
    """A socket whose other end is noticed to be gone within half a minute, however silent it may be."""
    made = socket.socket(family=address[0], type=address[1], proto=address[2])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return made


def _proxy_of(way: Way) -> str | None:
    """The proxy that the kubeconfig or the environment names; none for the loopback, as in kubectl."""
    address = urlsplit(way.server)
    host = address.hostname or ""
    if way.proxy or host == "localhost" or host.startswith("127.") or host == "::1":
        return way.proxy
    return None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(address.scheme)


def _forbidden(message: str, namespace: str) -> str:
    found = REFUSED.search(message)
    if found is None:
        return message
    user, verb, resource, group = found.groups()
    named = f"{resource}.{group}" if group else resource
    where = f" in namespace {namespace}" if " in the namespace " in message else " in all namespaces"
    if " at the cluster scope" in message and resource == "nodes":
        where = ""
    return f"RBAC refuses {user} to {verb} {named}{where}; docs/cli.md has a Role that suffices"


def as_object(data: bytes) -> Object:
    """An answer's JSON object."""
    try:
        found = json.loads(data) if data else {}
    except ValueError as error:
        raise AccessError(f"the API server's answer is no JSON: {error}", 0) from error
    return found if isinstance(found, dict) else {}


def _said(data: bytes) -> Object:
    try:
        return as_object(data)
    except AccessError:
        return {"message": data.decode(errors="replace").strip()[:300]}
