"""What a manifest may say of one participant's pod: its volumes, and a closed list of terms.

Nothing here gives rights to whoever may write a consortium: no host path, Secret, service account, security
context, command or environment. Where Kubernetes' own schema is large a value is handed on as it is; the API
server judges it when the Job is made. Rules between fields are in `rules.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from pcmoe_operator.part import Part
from pcmoe_operator.scalars import (
    DNS_NAME,
    IMAGE,
    LABEL,
    LABEL_VALUE,
    QUANTITY,
    RESOURCE_NAME,
    SIZE,
    annotation_keys,
    extended_resource,
    label_keys,
    number_as_text,
    qualified_keys,
)

DnsName = Annotated[str, StringConstraints(pattern=DNS_NAME, max_length=253)]
ImageReference = Annotated[str, StringConstraints(pattern=IMAGE, max_length=512)]
LabelValue = Annotated[str, StringConstraints(pattern=LABEL_VALUE, max_length=63)]
Quantity = Annotated[str, StringConstraints(pattern=QUANTITY, max_length=32), BeforeValidator(number_as_text)]
ResourceName = Annotated[
    str, StringConstraints(pattern=RESOURCE_NAME, max_length=253), AfterValidator(extended_resource)
]
HandedOn = dict[str, Any]
"""A value of Kubernetes' own API that nobody here looks into."""


class Claim(Part):
    """A PersistentVolumeClaim in the consortium's namespace."""

    claim_name: DnsName


class ImageVolume(Part):
    """The files of an OCI image or artifact, as a read-only volume."""

    reference: ImageReference
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"


class ReadVolume(Part):
    """A volume that is only read: exactly one of the two."""

    persistent_volume_claim: Claim | None = None
    image: ImageVolume | None = None


class CheckpointVolume(Part):
    """Where checkpoints and logs are written: a claim that is there, or the size of one to be made."""

    persistent_volume_claim: Claim | None = None
    size: Annotated[str, StringConstraints(pattern=SIZE, max_length=16)] | None = None
    storage_class_name: DnsName | None = None
    on_delete: Literal["Retain", "Delete"] = "Retain"
    """What becomes of a claim that was made, and of days of work on it, when the consortium is deleted."""


class Volumes(Part):
    """A participant's volumes. A local run needs none: its folders are beside the manifest."""

    dataset: ReadVolume | None = None
    model: ReadVolume | None = None
    checkpoint: CheckpointVolume | None = None


class PullSecret(Part):
    """A Secret that the kubelet, and nobody else, reads to pull images."""

    name: DnsName


def _distinct(secrets: tuple[PullSecret, ...]) -> tuple[PullSecret, ...]:
    if len(set(secrets)) < len(secrets):
        raise PydanticCustomError("unique", "must name each Secret once")
    return secrets


class ResourceClaim(Part):
    """A device by dynamic resource allocation: exactly one of a claim and a template of claims."""

    name: Annotated[str, StringConstraints(pattern=LABEL, max_length=63)]
    resource_claim_name: DnsName | None = None
    resource_claim_template_name: DnsName | None = None


class Resources(Part):
    """Requests and limits of the node's container, beside what `gpus` counts."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None


class Template(Part):
    """What may be said of a pod beyond what the operator says itself."""

    node_selector: (
        Annotated[dict[str, LabelValue], Field(max_length=32), AfterValidator(qualified_keys)] | None
    ) = None
    tolerations: Annotated[tuple[HandedOn, ...], Field(max_length=32)] = ()
    affinity: HandedOn | None = None
    topology_spread_constraints: Annotated[tuple[HandedOn, ...], Field(max_length=16)] = ()
    resources: Resources | None = None
    resource_claims: Annotated[tuple[ResourceClaim, ...], Field(max_length=16)] = ()
    runtime_class_name: DnsName | None = None
    priority_class_name: DnsName | None = None
    scheduler_name: DnsName | None = None
    image_pull_secrets: Annotated[
        tuple[PullSecret, ...], Field(max_length=16), AfterValidator(_distinct)
    ] = ()
    image: ImageReference | None = None
    labels: Annotated[dict[str, LabelValue], Field(max_length=32), AfterValidator(label_keys)] | None = None
    annotations: (
        Annotated[
            dict[str, Annotated[str, StringConstraints(max_length=4096)]],
            Field(max_length=32),
            AfterValidator(annotation_keys),
        ]
        | None
    ) = None
