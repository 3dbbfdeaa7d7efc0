"""Connected transports, and configurations for tests: tiny, complete, with certificates and free ports."""

import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

from pcmoe_node.config import CoordinatorConfig, NodeConfig
from pcmoe_node.coordination.server import CoordinatorServer
from pcmoe_node.exchange.base import Buffer, Header, Kind, Message, WireDtype
from pcmoe_node.exchange.limits import Limits
from pcmoe_node.exchange.local import Hook, LocalNetwork, LocalTransport
from pcmoe_node.exchange.tls import TlsTransport
from pcmoe_node.identity import Credentials
from pcmoe_node.journal import Journal
from pcmoe_node.protocol.membership import View
from pcmoe_operator.pki import KeyPair, identity_of, issue_leaf, write_participant

NAMES = ("amsterdam", "berlin", "lyon", "porto", "riga", "turku", "vienna", "zagreb")
AGREEMENT_ID = "test-2026"
HIDDEN_SIZE = 64
EXPERTS = 8
LAYERS = 3
Overrides = Mapping[str, Any]

_ports = iter(random.Random(os.getpid()).sample(range(12_000, 30_000), 5_000))


def free_port() -> int:
    """A port nobody listens on now, below those the system gives to outgoing connections."""
    for port in _ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


def architecture(**overrides: object) -> str:
    """A tiny OLMoE as canonical JSON."""
    shape: dict[str, object] = {
        "model_type": "olmoe",
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "vocab_size": 258,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    }
    return json.dumps(shape | overrides, sort_keys=True, separators=(",", ":"))


def node_configs(n: int, folder: Path, **overrides: Any) -> list[NodeConfig]:
    """Configurations of `n` participants with certificates under `folder`, listening on 127.0.0.1.

    An override that is a mapping is merged into its section (`training={"rounds": 2}`); a callable is called
    with the participant's index first; anything else replaces the field. An architecture is JSON text.
    """
    names = NAMES[:n]
    endpoints = [f"127.0.0.1:{free_port()}" for _ in names]
    bundles = [write_participant(folder / name / "certificates", name, AGREEMENT_ID) for name in names]
    participants = [
        {
            "name": name,
            "identity": identity_of(name, AGREEMENT_ID),
            "endpoint": endpoint,
            "ca_bundle": bundle,
        }
        for name, endpoint, bundle in zip(names, endpoints, bundles, strict=True)
    ]
    coordinator = _coordinator(folder, names[0], bundles[0])
    configs = []
    for index, name in enumerate(names):
        values = _defaults(folder / name, name, endpoints[index], n)
        values |= {"participants": participants, "coordinator": coordinator}
        configs.append(with_overrides(values, index, overrides))
    return configs


def _coordinator(folder: Path, host: str, bundle: str) -> dict[str, Any]:
    """The coordinator as nodes know it; its certificate, signed by its host's CA, is in `coordinator/certificates`."""
    certificates = folder / host / "certificates"
    authority = KeyPair(
        certificate=(certificates / "ca.crt").read_text(), key=(certificates / "ca.key").read_text()
    )
    identity = identity_of("coordinator", AGREEMENT_ID)
    leaf = issue_leaf(authority, identity)
    own = folder / "coordinator" / "certificates"
    own.mkdir(parents=True)
    (own / "tls.crt").write_text(leaf.certificate)
    (own / "tls.key").write_text(leaf.key)
    endpoint = f"127.0.0.1:{free_port()}"
    return {"name": "coordinator", "identity": identity, "endpoint": endpoint, "ca_bundle": bundle}


def coordinator_config(configs: Sequence[NodeConfig]) -> CoordinatorConfig:
    """What the coordinator of these nodes is told."""
    first = configs[0]
    folder = Path(first.identity.certificate_directory).parents[1] / "coordinator"
    identity = first.identity.model_copy(
        update={
            "listen": first.coordinator.endpoint,
            "certificate_directory": str(folder / "certificates"),
        }
    )
    return CoordinatorConfig(
        version="pcmoe-coordinator/1",
        participants=first.participants,
        coordinator=first.coordinator,
        identity=identity,
        peer_timeout_seconds=first.transport.peer_timeout_seconds,
        log_directory=str(folder / "log"),
        status_listen="127.0.0.1:0",
    )


@contextmanager
def coordinating(configs: Sequence[NodeConfig]) -> Iterator[CoordinatorServer]:
    """A coordinator for these nodes, in this process, over mutual TLS."""
    config = coordinator_config(configs)
    server = CoordinatorServer(config, Journal(Path(config.log_directory)))
    try:
        yield server
    finally:
        server.stop()


def view_of(configs: Sequence[object], number: int = 1, round_number: int = 0) -> View:
    """A view of all, in incarnations that tests can know."""
    members = tuple((index, incarnation_of(index)) for index in range(len(configs)))
    return View(number=number, round=round_number, members=members)


def incarnation_of(index: int) -> str:
    """The incarnation of a participant in `view_of`."""
    return f"{index + 1:032x}"


def credentials_of(config: NodeConfig) -> Credentials:
    """What a node's place reads at its start."""
    parties = (*config.participants, config.coordinator)
    return Credentials(config.participant, parties, config.identity.certificate_directory)


def tls_transport(config: NodeConfig, view: View | None = None) -> TlsTransport:
    """A transport in a view of all."""
    return TlsTransport(config, view or view_of(config.participants), credentials_of(config))


def with_overrides(values: dict[str, Any], index: int, overrides: Overrides) -> NodeConfig:
    """A configuration from plain values, changed as `node_configs` says."""
    for key, given in overrides.items():
        value = given(index) if callable(given) else given
        current = values[key]
        values[key] = (
            current | dict(value) if isinstance(current, dict) and isinstance(value, Mapping) else value
        )
    return NodeConfig.model_validate_json(json.dumps(values))


def changed(config: NodeConfig, **overrides: Any) -> NodeConfig:
    """A copy of a configuration with overrides as in `node_configs`."""
    return with_overrides(config.model_dump(mode="json"), config.index, overrides)


def _defaults(folder: Path, name: str, endpoint: str, n: int) -> dict[str, Any]:
    return {
        "version": "pcmoe-node/1",
        "participant": name,
        "identity": {
            "listen": endpoint,
            "certificate_directory": str(folder / "certificates"),
            "agreement_id": AGREEMENT_ID,
            "agreement_digest": "sha256:" + "a" * 64,
            "plan_digest": "sha256:" + "b" * 64,
            "agreement": json.dumps({"id": AGREEMENT_ID, "training": {"rounds": 2}}),
        },
        "model": {
            "architecture": architecture(),
            "checkpoint": None,
            "fingerprint": None,
            "dtype": "float32",
            "tokenizer": "ByteLevel",
            "seed": 7,
        },
        "placement": [
            {"layer": layer, "hosts": [expert % n for expert in range(EXPERTS)]}
            for layer in range(LAYERS - 1)
        ]
        + [{"layer": LAYERS - 1, "hosts": None}],
        "training": {
            "schedule": "Concurrent",
            "rounds": 2,
            "steps_per_round": 4,
            "micro_batches_per_step": 2,
            "in_flight": 2,
            "sequences_per_micro_batch": 2,
            "sequence_length": 32,
            "deterministic": False,
            "evaluation_sequences": 4,
            "evaluation_every_rounds": 1,
            "auxiliary_loss_coefficient": 0.0,
            "optimizer": {
                "learning_rate": 1e-3,
                "beta1": 0.9,
                "beta2": 0.95,
                "epsilon": 1e-8,
                "weight_decay": 0.1,
                "warmup_steps": 2,
                "decay": "Cosine",
                "max_grad_norm": 1.0,
            },
        },
        "transport": {
            "wire_dtype": "float32",
            "connections": 2,
            "peer_timeout_seconds": 10,
            "progress_timeout_seconds": 60,
            "rejoin_timeout_seconds": 60,
            "on_peer_loss": "Fail",
            "max_abs": 10000.0,
        },
        "quota": {"rows_per_message": 64, "slots_per_row": 2, "activation_bytes": 1 << 30},
        "dataset": {
            "path": str(folder / "data"),
            "format": "Text",
            "text_field": "text",
            "held_out_percent": 10,
        },
        "device": "CPU",
        "gradient_checkpointing": False,
        "threads": 1,
        "order_secret_file": None,
        "checkpoint_directory": str(folder / "checkpoint"),
        "checkpoint_keep": 2,
        "log_directory": str(folder / "log"),
        "status_listen": "127.0.0.1:0",
        "termination_message": None,
    }


class Rig(list[Any]):
    """Connected transports, in the participants' order; closes them and its folder at the end of a `with`."""

    def __init__(
        self,
        transports: list[Any],
        configs: list[NodeConfig],
        end: Callable[[], None],
        network: LocalNetwork | None,
    ) -> None:
        super().__init__(transports)
        self.configs = configs
        self.limits = [Limits.from_config(config) for config in configs]
        self._end = end
        self._network = network

    def kill(self, index: int) -> None:
        """End a participant as a crash does: its connections end without a goodbye."""
        if self._network is not None:
            self._network.kill(index)
        else:
            die(self[index])

    def close(self) -> None:
        """Close every transport and remove the folder."""
        together([transport.close for transport in self])
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_rig(
    n: int,
    kind: Literal["local", "tls"] = "tls",
    *,
    hook: Hook | None = None,
    reroute: Callable[[int, int, str], str] | None = None,
    timeout: float = 20.0,
    **overrides: Any,
) -> Rig:
    """`n` connected transports of one process.

    `hook` is for `local` (see `LocalNetwork`). `reroute(dialer, target, endpoint)` is for `tls`: it gives the
    address to dial instead, for instance that of a proxy.
    """
    folder = TemporaryDirectory(prefix="pcmoe-rig-")
    configs = node_configs(n, Path(folder.name), **overrides)
    if kind == "local":
        network = LocalNetwork(configs, hook)
        transports: list[LocalTransport] = [network.transport(i) for i in range(n)]
        return Rig(transports, configs, folder.cleanup, network)
    if reroute is not None:
        configs = [rerouted(config, reroute) for config in configs]
    tls = [tls_transport(config) for config in configs]
    rig = Rig(tls, configs, folder.cleanup, None)
    try:
        together([partial(t.open, timeout) for t in tls])
    except BaseException:
        rig.close()
        raise
    return rig


def die(transport: Any) -> None:
    """What a crash leaves of a transport: closed sockets, no goodbye, nobody at the door."""
    transport._closed = True
    for dialer in transport._dialers.values():
        dialer.close()
    if transport._door is not None:
        transport._door.close()
    transport._io._loop.call(transport._io._loop.finish)
    transport._io._loop.join(5.0)
    for dialer in transport._dialers.values():
        dialer.join()


def rerouted(config: NodeConfig, reroute: Callable[[int, int, str], str]) -> NodeConfig:
    """A configuration that dials other addresses."""
    peers = [peer.model_dump(mode="json") for peer in config.participants]
    for target, peer in enumerate(peers):
        if target != config.index and peer["endpoint"] is not None:
            peer["endpoint"] = reroute(config.index, target, peer["endpoint"])
    return changed(config, participants=peers)


def together(calls: list[Callable[[], Any]], timeout: float = 60.0) -> None:
    """Run all calls at once, each on its thread; raises the first error of any."""
    errors: list[BaseException] = []

    def run(call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), name="rig", daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
        if thread.is_alive():
            raise TimeoutError(f"a call took longer than {timeout} s")
    if errors:
        raise errors[0]


def message(
    limits: Limits, allocate: Callable[[int], Buffer], kind: Kind, host: int, *, rows: int = 0, **fields: Any
) -> Message:
    """A message of the right size with one slot per row and a payload of a repeating pattern."""
    if kind in (Kind.FORWARD, Kind.BACKWARD, Kind.EVALUATE, Kind.BACKWARD_REPLY):
        fields.setdefault("slots", rows)
    tensors = 16 <= kind < 32
    header = limits.sized(
        Header(kind=kind, rows=rows, dtype=limits.dtype if tensors else WireDtype.NONE, **fields), host
    )
    if header.payload_length == 0 and header.pad_length == 0:
        return Message(header)
    payload = allocate(header.payload_length + header.pad_length)
    payload.view[: header.payload_length] = pattern(header.payload_length, header.request)
    return Message(header, payload)


def pattern(length: int, seed: int) -> bytes:
    """`length` bytes that differ from seed to seed."""
    unit = random.Random(seed).randbytes(251)
    return (unit * (length // len(unit) + 1))[:length]


def wait_until(condition: Callable[[], bool], deadline: float = 5.0) -> None:
    """Look until it holds; fails after `deadline` seconds."""
    end = time.monotonic() + deadline
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        pause.wait(0.01)
