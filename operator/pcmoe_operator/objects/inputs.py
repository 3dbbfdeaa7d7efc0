"""What objects are built from: read or drawn by the reconciler, only placed here."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pcmoe_operator.constants import COORDINATOR
from pcmoe_operator.objects.names import Owner, service
from pcmoe_operator.pki import KeyPair
from pcmoe_operator.plan import ParticipantPlan, Plan
from pcmoe_operator.schema import Consortium
from pcmoe_operator.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """Keys of all that runs here."""

    authorities: Mapping[str, KeyPair] = field(repr=False)
    """By participant, each one's CA; also of those that ran here once, since a CA is never replaced."""
    leaves: Mapping[str, KeyPair] = field(repr=False)
    """By participant, what its CA has signed."""
    coordinator: KeyPair | None = field(default=None, repr=False)
    """Signed by the CA of the participant that runs it; None if it doesn't run here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundClaim:
    """A checkpoint's claim as it is in the cluster."""

    size: str
    """Its request, as a quantity."""
    storage_class: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """One consortium in this cluster. It holds no key: what needs one is given it beside this."""

    owner: Owner
    consortium: Consortium
    plan: Plan
    settings: Settings
    generation: int = 0
    """Of the manifest: it rises with every change."""

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name)."""
        return self.owner.namespace, self.owner.name

    @property
    def here(self) -> tuple[str, ...]:
        """Participants that run in this cluster, by name."""
        chosen = self.settings.participants
        return tuple(entry.name for entry in self.consortium.local if not chosen or entry.name in chosen)

    @property
    def coordinates(self) -> bool:
        """Whether the coordinator runs in this cluster."""
        return self.consortium.agreement.coordinator in self.here

    @property
    def attempt(self) -> int:
        """Number of this start."""
        return self.consortium.spec.attempt

    def plan_of(self, participant: str) -> ParticipantPlan:
        """One participant's part of the plan."""
        return self.plan.participants[self.plan.names.index(participant)]

    def node_endpoint(self, participant: str) -> str:
        """`host:port` of a node in this cluster; its name stands before it is ready, and survives its pod."""
        return self._endpoint(participant)

    @property
    def coordinator_endpoint(self) -> str:
        """`host:port` of the coordinator; where it runs elsewhere, that of the participant that runs it.

        `needs.cluster_faults` has seen to it that this one has an endpoint.
        """
        if self.coordinates:
            return self._endpoint(COORDINATOR)
        entry = self.consortium.roster_entry(self.consortium.agreement.coordinator)
        assert entry is not None
        assert entry.endpoint is not None
        return entry.endpoint

    def _endpoint(self, member: str) -> str:
        owner, settings = self.owner, self.settings
        host = f"{member}.{service(owner.name)}.{owner.namespace}.svc.{settings.cluster_domain}"
        return f"{host}:{settings.node_port}"
