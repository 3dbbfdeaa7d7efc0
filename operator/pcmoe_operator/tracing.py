"""Every request to the API server, ours and those of kopf's watches, as the HTTP client tells of it."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp
from yarl import URL

VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
NO_ANSWER = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What a request asks for, as RBAC has it; `resource` is `jobs` or `jobs/status`, or a path's first part."""

    verb: str
    resource: str
    namespace: str

    @classmethod
    def of(cls, method: str, url: URL) -> "Call":
        """The call behind a method and an address."""
        parts = [part for part in url.path.split("/") if part]
        if "namespaces" not in parts:
            return cls(verb=VERBS.get(method, "get"), resource=parts[0] if parts else "", namespace="")
        namespace, *rest = parts[parts.index("namespaces") + 1 :]
        if not rest:
            return cls(verb=VERBS.get(method, "get"), resource="namespaces", namespace=namespace)
        verb = VERBS.get(method, "get" if len(rest) > 1 else "list")
        if verb == "list" and url.query.get("watch") == "true":
            verb = "watch"
        return cls(verb=verb, resource="/".join([rest[0], *rest[2:]]), namespace=namespace)


def trace(heard: Callable[[Call, str], None]) -> aiohttp.TraceConfig:
    """For a client's session: `heard(call, code)` at the head of each answer; the code is `none` if there is none."""
    config = aiohttp.TraceConfig()

    async def end(_session: Any, _context: SimpleNamespace, params: aiohttp.TraceRequestEndParams) -> None:
        heard(Call.of(params.method, params.url), str(params.response.status))

    async def lost(
        _session: Any, _context: SimpleNamespace, params: aiohttp.TraceRequestExceptionParams
    ) -> None:
        heard(Call.of(params.method, params.url), NO_ANSWER)

    config.on_request_end.append(end)
    config.on_request_exception.append(lost)
    return config
