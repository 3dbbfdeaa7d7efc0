"""The Service, and who may talk to whom: what these policies don't allow is denied."""

import ipaddress
from collections.abc import Iterator, Mapping, Sequence

from pcmoe_operator.objects.inputs import Inputs
from pcmoe_operator.objects.names import Object, Role, chosen, head, labels, policy, service
from pcmoe_operator.settings import PodChoice, Settings

EXCHANGE = "exchange"
"""Name of the port of TLS between members."""
STATUS = "status"
"""Name of the port of status and metrics."""
NAMESPACE_LABEL = "kubernetes.io/metadata.name"


def members_service(inputs: Inputs) -> Object:
    """The headless Service, by which each pod has a name: its `hostname` before the Service's.

    One for all: of each Service the cluster keeps lists of addresses, which are written anew whenever a pod changes.
    """
    owner = inputs.owner
    port = {"name": EXCHANGE, "port": inputs.settings.node_port, "targetPort": EXCHANGE, "protocol": "TCP"}
    spec: Object = {
        "selector": dict(chosen(owner.name)),
        "ports": [port],
        "clusterIP": "None",
        # A node is connected to before it is ready: it is ready when all are connected.
        "publishNotReadyAddresses": True,
    }
    return {**head("v1", "Service", service(owner.name), owner, labels(owner.name)), "spec": spec}


def policies(inputs: Inputs) -> Iterator[Object]:
    """The policy of the nodes, and the coordinator's where it runs here.

    Nodes talk to nodes and to the coordinator, which dials nobody. The operator and whoever reads metrics may ask
    for the status. Names are looked up where the settings say. Participants elsewhere are reached at the roster's
    ports, at its addresses or the settings', and come in from where the settings say. Nothing else: no API server.
    """
    name, settings = inputs.owner.name, inputs.settings
    nodes, coordinator = _same(chosen(name, "node")), _same(chosen(name, "coordinator"))
    exchange = [_port(settings.node_port)]
    partners_in = _partners_in(inputs)
    status = {"from": _status_readers(settings), "ports": [_port(settings.status_port)]}
    yield _policy(
        inputs,
        "node",
        ingress=[{"from": [nodes, *partners_in], "ports": exchange}, status],
        egress=[{"to": [nodes, coordinator], "ports": exchange}, *_partners_out(inputs), *_names(settings)],
    )
    if inputs.coordinates:
        came = {"from": [nodes, *partners_in], "ports": exchange}
        yield _policy(inputs, "coordinator", ingress=[came, status], egress=[])


def _elsewhere(inputs: Inputs) -> list[str]:
    """Participants that run in another cluster."""
    return [name for name in inputs.consortium.names if name not in inputs.here]


def _partners_out(inputs: Inputs) -> Iterator[Object]:
    """A rule per endpoint of the roster; none without an address: a rule without peers would let everything out."""
    for name in _elsewhere(inputs):
        entry = inputs.consortium.roster_entry(name)
        if entry is None or entry.endpoint is None:
            continue
        host, _, port = entry.endpoint.rpartition(":")
        blocks = [{"ipBlock": {"cidr": block}} for block in _blocks(host, inputs.settings)]
        if blocks:
            yield {"to": blocks, "ports": [_port(int(port))]}


def _blocks(host: str, settings: Settings) -> Sequence[str]:
    """Where a host is: itself if it is an address, or else where the settings say that partners are."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return settings.partner_addresses
    return (f"{address}/{address.max_prefixlen}",)


def _partners_in(inputs: Inputs) -> list[Object]:
    """From where participants elsewhere come in; nobody where all run here."""
    if not _elsewhere(inputs):
        return []
    blocks: list[Object] = [{"ipBlock": {"cidr": block}} for block in inputs.settings.partner_sources]
    return [*blocks, *(_pods(choice) for choice in inputs.settings.partner_gateways)]


def _policy(inputs: Inputs, role: Role, *, ingress: Sequence[Object], egress: Sequence[Object]) -> Object:
    owner = inputs.owner
    made = head(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        policy(owner.name, role),
        owner,
        labels(owner.name, role),
    )
    spec: Object = {
        "podSelector": {"matchLabels": dict(chosen(owner.name, role))},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": list(ingress),
        "egress": list(egress),
    }
    # An empty list is stored as none at all, and every apply of one would be a write.
    return {**made, "spec": {key: value for key, value in spec.items() if value}}


def _same(pod_labels: Mapping[str, str]) -> Object:
    """Pods of the consortium's own namespace."""
    return {"podSelector": {"matchLabels": dict(pod_labels)}}


def _port(number: int, protocol: str = "TCP") -> Object:
    return {"protocol": protocol, "port": number}


def _status_readers(settings: Settings) -> list[Object]:
    operator = PodChoice(
        namespace_labels={NAMESPACE_LABEL: settings.lease_namespace}, pod_labels=settings.operator_labels
    )
    return [_pods(choice) for choice in (operator, *settings.metrics_readers)]


def _names(settings: Settings) -> Iterator[Object]:
    """The rule for DNS; none without a server, since a rule without peers would let everything through."""
    blocks: list[Object] = [{"ipBlock": {"cidr": address}} for address in settings.dns_addresses]
    servers = [*(_pods(choice) for choice in settings.dns_pods), *blocks]
    ports = [_port(port, protocol) for port in settings.dns_ports for protocol in ("UDP", "TCP")]
    if servers:
        yield {"to": servers, "ports": ports}


def _pods(choice: PodChoice) -> Object:
    """A peer of a policy. One without a namespace's labels means the policy's own namespace."""
    peer: Object = {}
    if choice.namespace_labels:
        peer["namespaceSelector"] = {"matchLabels": dict(choice.namespace_labels)}
    if choice.pod_labels:
        peer["podSelector"] = {"matchLabels": dict(choice.pod_labels)}
    return peer or {"podSelector": {}}
