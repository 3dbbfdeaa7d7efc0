"""What the operator is told by whoever installed it: one JSON file, rendered by the chart."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from pcmoe_operator.errors import UsageError

Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]


class PodChoice(BaseModel):
    """Pods by their own and their namespace's labels, as a NetworkPolicy chooses them: both have to fit.

    Without a namespace's labels it is the consortium's namespace, without a pod's labels every pod there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    namespace_labels: dict[str, str] = {}
    pod_labels: dict[str, str] = {}


class Settings(BaseModel):
    """Frozen, closed; camelCase in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    namespaces: Annotated[tuple[str, ...], Field(min_length=1)]
    """Namespaces whose consortia are looked after; the operator has a Role in each, and rights nowhere else."""
    participants: tuple[str, ...] = ()
    """Partner mode: only these participants run here, whatever a manifest's `local` says; empty: all of `local`."""
    node_image: str
    """Image of the nodes, by digest."""
    operator_image: str
    """Image of the operator; the coordinator runs in it too, without torch."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    cluster_domain: str = "cluster.local"
    lease_namespace: str
    lease_name: str = "pcmoe-operator"
    lease_seconds: Count = 15
    """A leader that has not renewed for so long is one no more."""
    resync_seconds: Count = 1800
    """Every consortium is looked at so often at least, spread by chance."""
    watch_seconds: Count = 30
    """Every watch is opened anew so often; a silent one is taken for dead after a third more."""
    unschedulable_seconds: Count = 120
    """So long a pod may wait for a machine before its consortium gives back the GPUs that others wait for."""
    retry_seconds: Count = 30
    """So long, and up to a fifth more by chance, a consortium that gave back rests before it asks for all again."""
    turn_seconds: Count = 10
    """So long a pod may wait for a machine when it is not the first time, or while an older consortium waits too.

    Well below `unschedulable_seconds`: it is by its patience that the older of two that came together is the first.
    """
    restarts_without_progress: Count = 10
    """A participant that has ended so often by its own fault, with no round committed meanwhile, ends the attempt."""
    status_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Status is written at most so often for progress alone."""
    metrics_port: Port = 8080
    """`/metrics`, `/healthz` and `/readyz` of the operator."""
    node_port: Port = 8443
    """The exchange's port in a pod."""
    status_port: Port = 9400
    """`/status` and `/metrics` of a pod."""
    operator_labels: dict[str, str] = {"app.kubernetes.io/name": "pcmoe-operator"}
    """Labels of the operator's own pods, in `lease_namespace`: they may ask a pod for its status."""
    metrics_readers: tuple[PodChoice, ...] = ()
    """Who else may read `status_port`: Prometheus."""
    dns_pods: tuple[PodChoice, ...] = (
        PodChoice(namespace_labels={"kubernetes.io/metadata.name": "kube-system"}),
    )
    """Who answers for names of the cluster."""
    dns_addresses: tuple[str, ...] = ()
    """Address blocks of such servers that are no pods: `169.254.20.10/32` with NodeLocal DNSCache."""
    dns_ports: Annotated[tuple[Port, ...], Field(min_length=1)] = (53,)
    """In a server's pod, not in its Service: OpenShift's listens on 5353."""
    partner_addresses: tuple[str, ...] = ()
    """Address blocks of partners outside the cluster. A policy can't name hosts, so an endpoint with a name needs its
    block here; one that is an address is let through by itself."""
    partner_sources: tuple[str, ...] = ()
    """Address blocks that partners' connections come from, as a pod sees them: often those of machines or a gateway."""
    partner_gateways: tuple[PodChoice, ...] = ()
    """Pods through which partners' connections come in: an ingress controller that passes TLS through."""
    restart_in_place: bool = True
    """Whether the cluster can start a container again in its pod by its exit code, as Kubernetes can since 1.35.

    Else a node that has lost a peer comes back in another pod, after the Job controller's back-off: 10 s, doubled each
    time, 10 minutes at most.
    """
    volume_group: int | None = Field(default=65532, ge=1)
    """`fsGroup` of a node's pod, so that it can write to a new volume; null where admission sets one (OpenShift)."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file; `UsageError` names every field and rule that is broken."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UsageError(f"{path}: can't be read: {error.strerror}") from error
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise UsageError(f"{path}: {faults}") from None
