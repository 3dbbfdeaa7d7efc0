"""A consortium as its operator sees it, for tests of the objects it makes."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.builders import consortium

from pcmoe_operator.objects.bundle import bundle
from pcmoe_operator.objects.inputs import Inputs, Keys
from pcmoe_operator.objects.jobs import jobs
from pcmoe_operator.objects.names import Object, Owner
from pcmoe_operator.pki import KeyPair
from pcmoe_operator.plan import make_plan
from pcmoe_operator.settings import Settings

NAMESPACE = "training"
SETTINGS: Mapping[str, Any] = {
    "namespaces": [NAMESPACE],
    "nodeImage": "registry.example/pcmoe-node@sha256:1",
    "operatorImage": "registry.example/pcmoe-operator@sha256:2",
    "leaseNamespace": "pcmoe-system",
}
VOLUMES: Mapping[str, Any] = {
    "dataset": {"persistentVolumeClaim": {"claimName": "records"}},
    "checkpoint": {"size": "200Gi"},
}


def here(names: Sequence[str], **changes: Any) -> list[dict[str, Any]]:
    """`local` entries with volumes; `changes` by participant go over them."""
    return [{"name": name, "volumes": VOLUMES, **changes.get(name, {})} for name in names]


def inputs(
    participants: int | Sequence[str] = 2,
    overrides: Mapping[str, Any] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    name: str = "hospitals",
    **local: Any,
) -> Inputs:
    """Inputs for `tests.builders.consortium(...)`, where everybody runs here and has volumes."""
    names = consortium(participants).names
    made = consortium(
        participants, {"metadata.name": name, "local": here(names, **local), **(overrides or {})}
    )
    return Inputs(
        owner=Owner(name=name, namespace=NAMESPACE, uid="0-1-2"),
        consortium=made,
        plan=make_plan(made),
        settings=Settings.model_validate({**SETTINGS, **(settings or {})}),
    )


def keys(given: Inputs) -> Keys:
    """Keys that say whose they are."""
    return Keys(
        authorities={name: pair(f"CA of {name}") for name in given.here},
        leaves={name: pair(f"leaf of {name}") for name in given.here},
        coordinator=pair("leaf of the coordinator") if given.coordinates else None,
    )


def pair(whose: str) -> KeyPair:
    """A pair of texts in the place of a certificate and its key."""
    return KeyPair(certificate=f"certificate: {whose}", key=f"private key: {whose}")


def everything(given: Inputs) -> list[Object]:
    """The bundle and the Jobs."""
    return [*bundle(given, keys(given)), *jobs(given, suspend=False)]


def of_kind(objects: Sequence[Object], kind: str) -> dict[str, Object]:
    """Objects of one kind by name."""
    return {made["metadata"]["name"]: made for made in objects if made["kind"] == kind}


def pod_specs(objects: Sequence[Object]) -> dict[str, Object]:
    """Every pod's spec by the name of what makes it."""
    return {
        made["metadata"]["name"]: made["spec"]["template"]["spec"]
        for made in objects
        if made["kind"] in ("Job", "ReplicaSet")
    }
