"""A network as the NetworkPolicy API describes it: what a set of policies lets through. No plugin is asked.

Policies add up: a pod chosen by none is open; one that is chosen is reached, or gets out, only where some rule of some
policy says so. Both sides have to agree.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Object = Mapping[str, Any]
NAME_LABEL = "kubernetes.io/metadata.name"


@dataclass(frozen=True, kw_only=True)
class End:
    """A pod, or a machine outside the cluster: that one has no namespace."""

    name: str
    namespace: str | None = "training"
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "10.0.0.9"


def allowed(policies: Sequence[Object], source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """Whether a connection goes through: the source may leave and the target may be reached."""
    leaves = _lets(policies, "Egress", source, target, (port, protocol))
    return leaves and _lets(policies, "Ingress", target, source, (port, protocol))


def _lets(policies: Sequence[Object], way: str, own: End, other: End, where: tuple[int, str]) -> bool:
    key, side = ("egress", "to") if way == "Egress" else ("ingress", "from")
    mine = [policy for policy in policies if _chooses(policy, own) and way in _ways(policy["spec"])]
    rules = [(policy, rule) for policy in mine for rule in policy["spec"].get(key) or ()]
    return not mine or any(
        _peer_fits(rule.get(side), policy, other) and _port_fits(rule.get("ports"), where)
        for policy, rule in rules
    )


def _chooses(policy: Object, own: End) -> bool:
    same = own.namespace == policy["metadata"]["namespace"]
    return same and _fits(policy["spec"]["podSelector"], own.labels)


def _ways(spec: Object) -> Sequence[str]:
    """What a policy is about; one that doesn't say is about what comes in, and about what goes out if it has rules."""
    found: Sequence[str] = spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]
    return found


def _peer_fits(peers: Sequence[Object] | None, policy: Object, other: End) -> bool:
    """No peers at all are all of them."""
    return not peers or any(_is(peer, policy, other) for peer in peers)


def _is(peer: Object, policy: Object, other: End) -> bool:
    if "ipBlock" in peer:
        assert set(peer) == {"ipBlock"}, "a block of addresses stands alone"
        address, block = ipaddress.ip_address(other.address), peer["ipBlock"]
        inside = address in ipaddress.ip_network(block["cidr"])
        return inside and not any(address in ipaddress.ip_network(each) for each in block.get("except", ()))
    if other.namespace is None:
        return False
    if "namespaceSelector" in peer:
        known = {NAME_LABEL: other.namespace, **other.namespace_labels}
        there = _fits(peer["namespaceSelector"], known)
    else:
        there = other.namespace == policy["metadata"]["namespace"]
    return there and _fits(peer.get("podSelector", {}), other.labels)


def _port_fits(ports: Sequence[Object] | None, where: tuple[int, str]) -> bool:
    """No ports at all are all of them. A named port would need the pod's own list; ours are numbers."""
    number, protocol = where
    return not ports or any(
        each.get("protocol", "TCP") == protocol
        and ("port" not in each or each["port"] <= number <= each.get("endPort", each["port"]))
        for each in ports
    )


def _fits(selector: Object, have: Mapping[str, str]) -> bool:
    """An empty selector fits everything."""
    labels: Mapping[str, str] = selector.get("matchLabels", {})
    return labels.items() <= have.items() and all(
        _holds(e, have) for e in selector.get("matchExpressions", ())
    )


def _holds(expression: Object, have: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", ())
    return {
        "In": have.get(key) in values,
        "NotIn": have.get(key) not in values,
        "Exists": key in have,
        "DoesNotExist": key not in have,
    }[expression["operator"]]
