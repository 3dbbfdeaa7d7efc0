"""Who hosts which experts of which layer: pure integers, decided by the agreement alone.

*RoundRobin* deals the (layer, expert) pairs out like cards, on and on from layer to layer, so that with 10
experts and 3 hosts nobody always gets the tenth. *CapacityWeighted* gives each host its share of every layer
within one, and over the layers evens out what rounding took. *Pinned* does what the manifest says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from pcmoe_operator.scalars import expert_numbers
from pcmoe_operator.schema import Consortium
from pcmoe_operator.shape import ModelShape


@dataclass(frozen=True, slots=True)
class LayerHosts:
    """The experts of one decoder layer."""

    layer: int
    hosts: tuple[int, ...] | None
    """Host (participant's index) of each expert, or None: a local layer, every participant holds all."""

    def hosted_by(self, participant: int) -> int:
        """How many experts of a shared layer a participant hosts; 0 for a local layer."""
        return 0 if self.hosts is None else self.hosts.count(participant)


def place(consortium: Consortium, shape: ModelShape) -> tuple[LayerHosts, ...]:
    """The hosts of every layer with experts, ascending by layer."""
    local = consortium.agreement.experts.local_layers
    last = len(shape.expert_layers) - local.at_end
    shared = shape.expert_layers[local.at_start : last]
    dealt = iter(_deal(consortium, shape.experts, len(shared)))
    return tuple(LayerHosts(layer, next(dealt) if layer in shared else None) for layer in shape.expert_layers)


def _deal(consortium: Consortium, experts: int, layers: int) -> Sequence[tuple[int, ...]]:
    """Hosts of each expert for each shared layer."""
    terms = consortium.agreement.experts
    if terms.placement == "Pinned":
        number = {name: i for i, name in enumerate(consortium.names)}
        host = {e: number[entry.participant] for entry in terms.pinned for e in expert_numbers(entry.experts)}
        return [tuple(host[expert] for expert in range(experts))] * layers
    allowed = terms.allowed_jurisdictions
    hosts = [i for i, p in enumerate(consortium.participants) if not allowed or p.jurisdiction in allowed]
    if terms.placement == "RoundRobin":
        return [
            tuple(hosts[(layer * experts + expert) % len(hosts)] for expert in range(experts))
            for layer in range(layers)
        ]
    return _weighted(hosts, [consortium.participants[host].capacity for host in hosts], experts, layers)


def _weighted(
    hosts: Sequence[int], capacities: Sequence[int], experts: int, layers: int
) -> list[tuple[int, ...]]:
    """Each layer's counts are the shares rounded down or up; up for whoever is most behind."""
    whole = sum(capacities)
    given = [0] * len(hosts)
    dealt = []
    for layer in range(1, layers + 1):
        counts = [experts * capacity // whole for capacity in capacities]
        behind = [layer * experts * c - (given[i] + counts[i]) * whole for i, c in enumerate(capacities)]
        inexact = [i for i, capacity in enumerate(capacities) if experts * capacity % whole]
        for i in sorted(inexact, key=lambda i: (-behind[i], i))[: experts - sum(counts)]:
            counts[i] += 1
        given = [a + b for a, b in zip(given, counts, strict=True)]
        dealt.append(tuple(hosts[i] for i in _interleaved(counts)))
    return dealt


def _interleaved(counts: Sequence[int]) -> list[int]:
    """Each index as often as counted, spread evenly: [2, 1, 1] -> 0, 1, 2, 0."""
    places = [(Fraction(2 * j + 1, 2 * count), i) for i, count in enumerate(counts) for j in range(count)]
    return [i for _, i in sorted(places)]
