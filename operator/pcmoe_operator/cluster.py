"""The API server, as far as the operator needs it: apply, read, list, delete, each with a deadline.

Server-side apply creates and changes in one request, and honours `resourceNames` in a Role also
for what doesn't exist yet; so nearly everything is an apply. Every failure is a `ClusterError` that says whether and
when to try again.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, Self
from urllib.parse import urlencode

import aiohttp
from pydantic_core import from_json, to_json
from yarl import URL

from pcmoe_operator.access import Access
from pcmoe_operator.constants import API_VERSION, GROUP, KIND, VERSION
from pcmoe_operator.errors import OperatorError

Object = dict[str, Any]
REQUEST_SECONDS = 30.0
FIELD_MANAGER = "pcmoe-operator"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
STEPS = "application/json-patch+json"
JSON = "application/json"
METADATA = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1,{JSON}"
"""As little as there is of an object that was applied: we know it."""
UNREAD = (APPLY, STEPS)
"""Of the answers to these only the type is looked at."""
API = f"/apis/{GROUP}/{VERSION}"
"""Where our own resources are served, and below `/openapi/v3` what they look like; everybody may read both."""

PATHS: Mapping[tuple[str, str], str] = {
    (API_VERSION, KIND): "/apis/pcmoe.dev/v1alpha1/namespaces/{namespace}/pcmoeconsortia",
    ("v1", "ConfigMap"): "/api/v1/namespaces/{namespace}/configmaps",
    ("v1", "Secret"): "/api/v1/namespaces/{namespace}/secrets",
    ("v1", "Service"): "/api/v1/namespaces/{namespace}/services",
    ("v1", "PersistentVolumeClaim"): "/api/v1/namespaces/{namespace}/persistentvolumeclaims",
    ("v1", "Pod"): "/api/v1/namespaces/{namespace}/pods",
    ("events.k8s.io/v1", "Event"): "/apis/events.k8s.io/v1/namespaces/{namespace}/events",
    ("apps/v1", "ReplicaSet"): "/apis/apps/v1/namespaces/{namespace}/replicasets",
    ("batch/v1", "Job"): "/apis/batch/v1/namespaces/{namespace}/jobs",
    ("coordination.k8s.io/v1", "Lease"): "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases",
    (
        "networking.k8s.io/v1",
        "NetworkPolicy",
    ): "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
}
"""Where the objects of each kind are; the operator touches no other."""


class ClusterError(OperatorError):
    """A request that failed. `status` is HTTP's; 0: there was no answer."""

    def __init__(self, what: str, status: int, reason: str, retry_after: float | None = None) -> None:
        super().__init__(f"{what}: {status or 'no answer'}: {reason}")
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        """Seconds that the server asks to wait."""

    @property
    def exists(self) -> bool:
        """Whether what was to be made is there already, be it on its way out."""
        return self.status == 409 and "already exists" in self.reason


class Requests(Protocol):
    """One request; what tests put faults into."""

    async def __call__(
        self, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str
    ) -> Object:
        """The answer's object; `ClusterError` for anything else. `body` is an object, a list of steps, or None."""


class Cluster:
    """Objects in and out. `request` carries each request; see `ApiRequests`."""

    def __init__(self, request: Requests) -> None:
        self._request = request

    async def apply(self, body: Object) -> None:
        """Make an object as `body` says; fields it doesn't name are others'."""
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        await self._request("PATCH", _path(body), query, body, APPLY)

    async def write_status(self, of: Object, status: Mapping[str, Any]) -> None:
        """Put a status in the place of an object's; 422 if there is another object by its name now.

        Server-side apply would not look at the uid of a status.
        """
        steps = [
            {"op": "test", "path": "/metadata/uid", "value": of["metadata"]["uid"]},
            {"op": "add", "path": "/status", "value": dict(status)},
        ]
        # Strict: else fields that the CRD doesn't have are dropped without a word.
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        await self._request("PATCH", _path(of) + "/status", query, steps, STEPS)

    async def create(self, body: Object) -> Object:
        """Make an object that must not exist."""
        path = _path(body).rpartition("/")[0]
        return await self._request("POST", path, {"fieldManager": FIELD_MANAGER}, body, "application/json")

    async def replace(self, body: Object) -> Object:
        """Put an object in the place of the one with its resourceVersion; 409 if that has changed."""
        return await self._request(
            "PUT", _path(body), {"fieldManager": FIELD_MANAGER}, body, "application/json"
        )

    async def merge(self, api_version: str, kind: str, namespace: str, name: str, changes: Object) -> Object:
        """Change fields of an object that is there; 404 if it isn't. No changes: reads it, without the right to."""
        path = collection(api_version, kind, namespace) + f"/{name}"
        return await self._request("PATCH", path, {"fieldManager": FIELD_MANAGER}, changes, MERGE)

    async def served(self) -> Object | None:
        """The OpenAPI document of our own API as it is served, or None if it isn't."""
        try:
            resources = await self._request("GET", API, {}, None, "")
            found = await self._request("GET", f"/openapi/v3{API}", {}, None, "")
        except ClusterError as error:
            if error.status == 404:
                return None
            raise
        return found if any(each.get("kind") == KIND for each in resources.get("resources", [])) else None

    async def read(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        """An object, or None."""
        try:
            return await self._request(
                "GET", collection(api_version, kind, namespace) + f"/{name}", {}, None, ""
            )
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    async def list(self, api_version: str, kind: str, namespace: str, selector: str = "") -> list[Object]:
        """Every object of a kind that a label selector picks."""
        query = {"labelSelector": selector} if selector else {}
        found = await self._request("GET", collection(api_version, kind, namespace), query, None, "")
        return [{"apiVersion": api_version, "kind": kind, **item} for item in found.get("items", [])]

    async def may_list(self, api_version: str, kind: str, namespace: str) -> bool | None:
        """Whether a namespace, and the right to list this kind there, is there; None if nobody can tell just now."""
        try:
            await self._request("GET", collection(api_version, kind, namespace), {"limit": "1"}, None, "")
        except ClusterError as error:
            return False if error.status in (403, 404) else None
        return True

    async def delete(self, api_version: str, kind: str, namespace: str, name: str) -> None:
        """Delete an object and, in the background, what it owns; one that isn't there is fine."""
        query = {"propagationPolicy": "Background"}
        try:
            await self._request(
                "DELETE", collection(api_version, kind, namespace) + f"/{name}", query, None, ""
            )
        except ClusterError as error:
            if error.status != 404:
                raise


def collection(api_version: str, kind: str, namespace: str) -> str:
    """The path of all objects of a kind in a namespace."""
    return PATHS[api_version, kind].format(namespace=namespace)


def _path(body: Object) -> str:
    metadata = body["metadata"]
    return f"{collection(body['apiVersion'], body['kind'], metadata['namespace'])}/{metadata['name']}"


class ApiRequests:
    """Requests to a cluster, each with a deadline, until `close`. `trace` hears of every one."""

    def __init__(self, access: Access, trace: aiohttp.TraceConfig | None = None) -> None:
        self._server = access.server
        self._session = access.session(trace_configs=[trace] if trace else None)

    @classmethod
    @asynccontextmanager
    async def to(cls, kubeconfig: str) -> AsyncIterator[Self]:
        """Requests to a kubeconfig's cluster."""
        made = cls(await Access.found(kubeconfig))
        try:
            yield made
        finally:
            await made.close()

    async def __call__(
        self, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str
    ) -> Object:
        """One request; `ClusterError` for whatever goes wrong."""
        what = f"{method} {path}"
        headers = {"Accept": METADATA if content_type in UNREAD else JSON}
        if content_type:
            headers["Content-Type"] = content_type
        sent = None if body is None else to_json(body)
        address = f"{self._server}{path}?{urlencode(query)}" if query else self._server + path
        try:
            async with (
                asyncio.timeout(REQUEST_SECONDS),
                self._session.request(
                    method, URL(address, encoded=True), data=sent, headers=headers, allow_redirects=False
                ) as answer,
            ):
                data = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ClusterError(what, 0, str(error) or type(error).__name__) from error
        if not 200 <= answer.status < 300:
            raise _error(what, answer, data)
        if content_type in UNREAD and answer.content_type == JSON:
            return {}  # what was applied is known: to read the answer of each would take a twentieth of all time
        try:
            found: Object = from_json(data) if data else {}
        except ValueError as error:  # somebody on the way has answered
            raise ClusterError(what, 0, f"the answer is no JSON: {error}") from error
        return found

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


def _error(what: str, answer: aiohttp.ClientResponse, data: bytes) -> ClusterError:
    """The server's own words where it has some."""
    try:
        message = from_json(data)["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.reason or ""
    try:
        retry_after = float(answer.headers["Retry-After"])
    except (KeyError, ValueError):
        retry_after = None
    return ClusterError(what, answer.status, str(message)[:1000], retry_after)
