"""What the API server was asked for, read from its audit log."""

import json
from dataclasses import dataclass
from pathlib import Path

POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        # How a plane finds out that it is ready.
        {"level": "None", "nonResourceURLs": ["/healthz*", "/readyz*", "/livez*"]},
        {"level": "Metadata"},
    ],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request. A watch is one from its start on, with the code 200."""

    user: str
    verb: str
    """As RBAC has it: get, list, watch, create, update, patch, delete, deletecollection."""
    resource: str
    """Such as `pods` or `jobs/status`; empty for a path that is no resource."""
    namespace: str
    """Empty for what has none."""
    name: str
    """Empty where the request names none, as in a list."""
    code: int
    path: str
    """With the query."""
    agent: str
    """The program, as it calls itself."""


def read(log: Path, user: str | None = None) -> list[Request]:
    """All requests of a user so far, or of everybody, in the order of their answers.

    The API server writes a line at about the time it answers: for a request of a moment ago look more than once.
    """
    requests: dict[str, Request] = {}
    if log.exists():
        for line in log.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # else it is still being written
                event = json.loads(line)
                who = event.get("impersonatedUser", event["user"]).get("username", "")
                if user in (None, who):
                    requests[event["auditID"]] = _request(event, who)
    return list(requests.values())


def _request(event: dict[str, object], user: str) -> Request:
    reference = event.get("objectRef") or {}
    status = event.get("responseStatus") or {}
    assert isinstance(reference, dict) and isinstance(status, dict)
    resource = "/".join(filter(None, (reference.get("resource"), reference.get("subresource"))))
    return Request(
        user=user,
        verb=str(event["verb"]),
        resource=resource,
        namespace=reference.get("namespace", ""),
        name=reference.get("name", ""),
        code=status.get("code", 0),
        agent=str(event.get("userAgent", "")),
        path=str(event["requestURI"]),
    )
