"""Every object's name, labels and owner, in one place.

A name is put together with dots. Names of consortia and participants have hyphens but no dots, so `a-b` with
`c` and `a` with `b-c` stay apart: with hyphens they would share a checkpoint. A Service may have no dots and begins
with a letter; its name tells what it is at the front.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pcmoe_operator.constants import API_VERSION, COORDINATOR, GROUP, KIND

Object = dict[str, Any]
"""A Kubernetes object, or a part of one."""
Role = Literal["node", "coordinator"]

CONSORTIUM = f"{GROUP}/consortium"
PARTICIPANT = f"{GROUP}/participant"
ROLE = f"{GROUP}/role"
ATTEMPT = f"{GROUP}/attempt"
TEMPLATE = f"{GROUP}/template"
"""Of the coordinator's pod: a digest of what it was made from."""
UID = f"{GROUP}/consortium-uid"
"""Of the coordinator's pod: which of the consortia by that name, one after the other, it belongs to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """The consortium's object in the cluster."""

    name: str
    namespace: str
    uid: str

    @property
    def reference(self) -> Object:
        """Makes Kubernetes delete an object with its consortium.

        It blocks nothing: `blockOwnerDeletion` needs rights on finalizers where OwnerReferencesPermissionEnforcement
        is on.
        """
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }


def of_participant(consortium: str, participant: str) -> str:
    """A participant's claim."""
    return f"{consortium}.{participant}"


def of_attempt(consortium: str, participant: str, attempt: int) -> str:
    """A participant's Job: one per attempt, since a Job that has ended is history."""
    return f"{consortium}.{participant}.{attempt}"


def configuration(consortium: str) -> str:
    """The ConfigMap with what each process is told."""
    return f"{consortium}.config"


def authorities(consortium: str) -> str:
    """The Secret with the CAs of the participants that run here; no pod mounts it."""
    return f"{consortium}.ca"


def certificate(consortium: str, member: str) -> str:
    """The Secret with the certificate and key of a participant or the coordinator."""
    return f"{consortium}.{member}.tls"


def coordinator(consortium: str) -> str:
    """The coordinator's ReplicaSet: no participant may be called so."""
    return f"{consortium}.{COORDINATOR}"


def policy(consortium: str, role: Role) -> str:
    """The NetworkPolicy of the nodes, or of the coordinator."""
    return f"{consortium}.{role}"


def service(consortium: str) -> str:
    """The headless Service that gives every node, and the coordinator, a name of its own."""
    return f"pcmoe-members-{consortium}"


def chosen(consortium: str, role: Role | None = None) -> Mapping[str, str]:
    """The labels by which Service, policies and the ReplicaSet choose pods. They never change."""
    return {CONSORTIUM: consortium} if role is None else {CONSORTIUM: consortium, ROLE: role}


def labels(
    consortium: str, role: Role | None = None, participant: str | None = None, attempt: int | None = None
) -> dict[str, str]:
    """Labels of a pod or an object; one that is everybody's has no role.

    The consortium's own labels are not copied: tools that own it own those.
    """
    own = {PARTICIPANT: participant, ATTEMPT: None if attempt is None else str(attempt)}
    return {
        "app.kubernetes.io/name": "pcmoe",
        "app.kubernetes.io/instance": consortium,
        "app.kubernetes.io/managed-by": "pcmoe-operator",
        **chosen(consortium, role),
        **{key: value for key, value in own.items() if value is not None},
    }


def head(api_version: str, kind: str, name: str, owner: Owner, marked: Mapping[str, str]) -> Object:
    """The beginning of an object that goes when its consortium goes."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": dict(marked),
            "ownerReferences": [owner.reference],
        },
    }
