"""Who may talk to whom, asked of the policies as a network would ask them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.clustered import everything, here, inputs, of_kind
from tests.unit.network import NAME_LABEL, End, allowed

from pcmoe_operator.objects.names import Object, labels


def node(name: str, consortium: str = "hospitals", namespace: str = "training") -> End:
    return End(name=name, namespace=namespace, labels=labels(consortium, "node", name, 1))


OPERATOR = End(name="operator", namespace="pcmoe-system", labels={"app.kubernetes.io/name": "pcmoe-operator"})
PROMETHEUS = End(name="prometheus", namespace="monitoring", labels={"app.kubernetes.io/name": "prometheus"})
ENDS = [
    node("berlin"),
    node("lyon"),
    node("node of another consortium", "banks"),
    replace(node("berlin", namespace="elsewhere"), name="berlin of another namespace"),
    End(name="coordinator", labels=labels("hospitals", "coordinator")),
    End(name="another coordinator", labels=labels("banks", "coordinator")),
    OPERATOR,
    End(name="a false operator", labels=OPERATOR.labels),
    End(name="the operator's neighbour", namespace="pcmoe-system"),
    PROMETHEUS,
    End(name="a pod beside", labels={"app": "web"}),
    End(name="dns", namespace="kube-system", labels={"k8s-app": "kube-dns"}),
    End(name="dns of the machine", namespace=None, address="169.254.20.10"),
    End(name="the API server", namespace=None, address="192.0.2.10"),
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


@pytest.mark.parametrize(
    ("source", "target", "port", "through"),
    [
        ("berlin", "lyon", "8443", True),
        ("berlin", "coordinator", "8443", True),
        ("coordinator", "berlin", "8443", False),
        ("berlin", "node of another consortium", "8443", False),
        ("berlin", "another coordinator", "8443", False),
        ("node of another consortium", "berlin", "8443", False),
        ("berlin of another namespace", "lyon", "8443", False),
        ("lyon", "berlin of another namespace", "8443", False),
        ("a pod beside", "berlin", "8443", False),
        ("the internet", "berlin", "8443", False),
        ("operator", "berlin", "8443", False),
        ("operator", "berlin", "9400", True),
        ("operator", "coordinator", "9400", True),
        ("prometheus", "berlin", "9400", True),
        ("prometheus", "coordinator", "9400", True),
        ("prometheus", "berlin", "8443", False),
        ("a false operator", "berlin", "9400", False),
        ("the operator's neighbour", "berlin", "9400", False),
        ("a pod beside", "berlin", "9400", False),
        ("lyon", "berlin", "9400", False),
        ("berlin", "dns", "53/UDP", True),
        ("berlin", "dns", "53", True),
        ("coordinator", "dns", "53/UDP", False),
        ("berlin", "a pod beside", "53/UDP", False),
        ("berlin", "the internet", "443", False),
        ("berlin", "the internet", "53/UDP", False),
        ("berlin", "the API server", "6443", False),
        ("berlin", "operator", "8080", False),
        ("a pod beside", "the internet", "443", True),
    ],
)
def test_who_talks_to_whom(source: str, target: str, port: str, through: bool) -> None:
    readers = [{"namespaceLabels": {NAME_LABEL: "monitoring"}, "podLabels": dict(PROMETHEUS.labels)}]
    number, _, protocol = port.partition("/")
    made = policies(metricsReaders=readers)
    assert allowed(made, BY_NAME[source], BY_NAME[target], int(number), protocol or "TCP") == through


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


PARTNERS = {"pcmoe.lyon.example": "198.51.100.20", "198.51.100.21": "198.51.100.21"}


def with_partner(host: str, **settings: Any) -> list[Object]:
    """Policies of berlin's cluster, lyon being elsewhere."""
    roster = [{"name": "lyon", "endpoint": f"{host}:443", "caBundle": "-----BEGIN CERTIFICATE-----"}]
    given = inputs(2, {"roster": roster, "local": here(["berlin"])}, settings=settings)
    return list(of_kind(everything(given), "NetworkPolicy").values())


@pytest.mark.parametrize("host", PARTNERS)
def test_a_node_reaches_a_partner_elsewhere_at_its_endpoint_and_nothing_beside_it(host: str) -> None:
    made = with_partner(host, partnerAddresses=["198.51.100.20/32"])
    partner, other = (
        End(name="", namespace=None, address=each) for each in (PARTNERS[host], "198.51.100.99")
    )
    assert allowed(made, BY_NAME["berlin"], partner, 443)
    assert not allowed(made, BY_NAME["berlin"], partner, 8443)
    assert not allowed(made, BY_NAME["berlin"], other, 443)
    assert not allowed(made, BY_NAME["coordinator"], partner, 443)


def test_a_partner_known_by_name_is_not_reached_before_its_addresses_are_said() -> None:
    partner = End(name="lyon", namespace=None, address="198.51.100.20")
    assert not allowed(with_partner("pcmoe.lyon.example"), BY_NAME["berlin"], partner, 443)


def test_a_partner_comes_in_only_from_where_the_settings_say_and_only_to_the_exchange() -> None:
    partner = End(name="lyon", namespace=None, address="198.51.100.20")
    for member in (BY_NAME["berlin"], BY_NAME["coordinator"]):
        assert not allowed(with_partner("198.51.100.20"), partner, member, 8443)
        made = with_partner("198.51.100.20", partnerSources=["198.51.100.0/24"])
        assert allowed(made, partner, member, 8443)
        assert not allowed(made, partner, member, 9400)


def policy(**spec: Any) -> Object:
    return {"metadata": {"namespace": "training"}, "spec": {"podSelector": {}, **spec}}


WEB = End(name="web", labels={"app": "web"}, address="10.1.2.3")


@pytest.mark.parametrize(
    ("spec", "port", "through"),
    [
        ({}, 80, False),
        ({"policyTypes": ["Egress"]}, 80, False),
        ({"policyTypes": ["Egress"], "egress": [{}]}, 80, True),
        ({"ingress": [{}]}, 80, True),
        ({"ingress": [{"ports": [{"port": 80}]}]}, 80, True),
        ({"ingress": [{"ports": [{"port": 80, "protocol": "UDP"}]}]}, 80, False),
        ({"ingress": [{"ports": [{"port": 8000, "endPort": 8100}]}]}, 8042, True),
        ({"ingress": [{"ports": [{"port": 8000, "endPort": 8100}]}]}, 8101, False),
        ({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}, 80, True),
        (
            {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}]},
            80,
            False,
        ),
        ({"ingress": [{"from": [{"podSelector": {}}]}]}, 80, True),
        ({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}]}, 80, False),
        ({"ingress": [{"from": [{"namespaceSelector": {}}]}]}, 80, True),
        ({"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]}]}, 80, False),
    ],
)
def test_the_network_of_these_tests_keeps_the_rules_of_kubernetes(
    spec: dict[str, Any], port: int, through: bool
) -> None:
    assert allowed([policy(**spec)], WEB, End(name="db", labels={"app": "db"}), port) == through


@pytest.mark.parametrize(
    ("operator", "values", "through"),
    [("In", ["web"], True), ("NotIn", ["web"], False), ("Exists", [], True), ("DoesNotExist", [], False)],
)
def test_the_network_of_these_tests_reads_expressions(
    operator: str, values: list[str], through: bool
) -> None:
    chosen = {"matchExpressions": [{"key": "app", "operator": operator, "values": values}]}
    made = policy(ingress=[{"from": [{"podSelector": chosen}]}])
    assert allowed([made], WEB, End(name="db"), 80) == through
