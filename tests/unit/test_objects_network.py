"""Who may talk to whom, asked of the policies as a network would ask them."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.unit.clustered import everything, inputs, of_kind

from pcmoe_operator.objects.names import Object, labels

NAME_LABEL = "kubernetes.io/metadata.name"


@dataclass(frozen=True, kw_only=True)
class End:
    """A pod, or a machine outside the cluster."""

    name: str
    namespace: str | None = "training"
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "10.0.0.9"
    namespace_labels: Mapping[str, str] = field(default_factory=dict)


def allowed(policies: Sequence[Object], source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """Whether a connection goes through: the source may leave and the target may be reached."""
    return _lets(policies, "Egress", source, target, (port, protocol)) and _lets(
        policies, "Ingress", target, source, (port, protocol)
    )


def _lets(policies: Sequence[Object], way: str, own: End, other: End, where: tuple[int, str]) -> bool:
    mine = [
        policy
        for policy in policies
        if own.namespace == policy["metadata"]["namespace"]
        and way in policy["spec"]["policyTypes"]
        and _fits(policy["spec"]["podSelector"], own.labels)
    ]
    key, side = ("egress", "to") if way == "Egress" else ("ingress", "from")
    return not mine or any(
        (not rule[side] or any(_is(peer, policy, other) for peer in rule[side]))
        and where in [(port["port"], port["protocol"]) for port in rule["ports"]]
        for policy in mine
        for rule in policy["spec"].get(key, ())
    )


def _is(peer: Object, policy: Object, other: End) -> bool:
    if "ipBlock" in peer:
        return ipaddress.ip_address(other.address) in ipaddress.ip_network(peer["ipBlock"]["cidr"])
    if other.namespace is None:
        return False
    if "namespaceSelector" in peer:
        known = {NAME_LABEL: other.namespace, **other.namespace_labels}
        if not _fits(peer["namespaceSelector"], known):
            return False
    elif other.namespace != policy["metadata"]["namespace"]:
        return False
    return _fits(peer.get("podSelector", {}), other.labels)


def _fits(selector: Object, have: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    chosen: Mapping[str, str] = selector.get("matchLabels", {})
    return chosen.items() <= have.items()


def node(name: str, consortium: str = "hospitals", namespace: str = "training") -> End:
    return End(name=name, namespace=namespace, labels=labels(consortium, "node", name, 1))


OPERATOR = End(name="operator", namespace="pcmoe-system", labels={"app.kubernetes.io/name": "pcmoe-operator"})
PROMETHEUS = End(name="prometheus", namespace="monitoring", labels={"app.kubernetes.io/name": "prometheus"})
ENDS = [
    node("berlin"),
    node("lyon"),
    node("of another consortium", "banks"),
    node("of another namespace", namespace="elsewhere"),
    End(name="coordinator", labels=labels("hospitals", "coordinator")),
    End(name="another coordinator", labels=labels("banks", "coordinator")),
    OPERATOR,
    End(name="a false operator", labels=OPERATOR.labels),
    End(name="the operator's neighbour", namespace="pcmoe-system"),
    PROMETHEUS,
    End(name="a pod beside", labels={"app": "web"}),
    End(name="dns", namespace="kube-system", labels={"k8s-app": "kube-dns"}),
    End(name="dns of the machine", namespace=None, address="169.254.20.10"),
    End(name="the internet", namespace=None, address="203.0.113.7"),
]
BY_NAME = {end.name: end for end in ENDS}


def policies(**settings: Any) -> list[Object]:
    objects = [
        *everything(inputs(2, settings=settings)),
        *everything(inputs(2, name="banks", settings=settings)),
    ]
    return list(of_kind(objects, "NetworkPolicy").values())


def reach(target: str, port: int, made: Sequence[Object]) -> set[str]:
    """Who reaches a port of somebody."""
    return {end.name for end in ENDS if end.name != target and allowed(made, end, BY_NAME[target], port)}


def reached(source: str, port: int, made: Sequence[Object], protocol: str = "TCP") -> set[str]:
    """Whom somebody reaches at a port."""
    return {
        end.name for end in ENDS if end.name != source and allowed(made, BY_NAME[source], end, port, protocol)
    }


def test_a_node_is_reached_by_the_nodes_of_its_consortium_only() -> None:
    assert reach("lyon", 8443, policies()) == {"berlin"}


def test_the_coordinator_is_reached_by_the_nodes_of_its_consortium_only() -> None:
    assert reach("coordinator", 8443, policies()) == {"berlin", "lyon"}


@pytest.mark.parametrize("target", ["berlin", "coordinator"])
def test_the_status_is_read_by_the_operator_and_by_whom_the_settings_name(target: str) -> None:
    assert reach(target, 9400, policies()) == {"operator"}
    readers = [{"namespaceLabels": {NAME_LABEL: "monitoring"}, "podLabels": dict(PROMETHEUS.labels)}]
    assert reach(target, 9400, policies(metricsReaders=readers)) == {"operator", "prometheus"}
    assert reach(target, 22, policies()) == set()


def test_readers_without_labels_are_all_pods_of_the_own_namespace() -> None:
    assert "a pod beside" in reach("lyon", 9400, policies(metricsReaders=[{}]))
    assert "the internet" not in reach("lyon", 9400, policies(metricsReaders=[{}]))


def test_a_node_reaches_its_consortium_and_names_and_nothing_else() -> None:
    made = policies()
    assert reached("berlin", 8443, made) == {"lyon", "coordinator"}
    for protocol in ("TCP", "UDP"):
        assert reached("berlin", 53, made, protocol) == {"dns"}
    for port in (80, 443, 6443, 9400):
        assert reached("berlin", port, made) == set()


def test_names_are_looked_up_where_the_settings_say() -> None:
    made = policies(dnsAddresses=["169.254.20.10/32"], dnsPorts=[53, 5353])
    assert reached("berlin", 53, made, "UDP") == {"dns", "dns of the machine"}
    assert reached("berlin", 5353, made, "UDP") == {"dns", "dns of the machine"}


def test_without_a_name_server_no_name_is_looked_up_anywhere() -> None:
    assert reached("berlin", 53, policies(dnsPods=[]), "UDP") == set()


def test_the_coordinator_dials_nobody() -> None:
    made = policies()
    for port in (53, 443, 8443, 9400):
        assert reached("coordinator", port, made) == set()


def test_a_pod_cannot_pass_for_another_by_what_a_manifest_may_say() -> None:
    given = inputs(2, lyon={"template": {"labels": {"app": "web"}}})
    pods = of_kind(everything(given), "Job")
    own = pods["hospitals.lyon.1"]["spec"]["template"]["metadata"]["labels"]
    assert labels("hospitals", "node", "lyon", 1).items() <= own.items()


def test_other_ports_are_let_through_where_the_settings_move_them() -> None:
    made = policies(nodePort=9443, statusPort=9401)
    assert reach("lyon", 9443, made) == {"berlin"}
    assert reach("lyon", 9401, made) == {"operator"}
    assert reach("lyon", 8443, made) == set()
