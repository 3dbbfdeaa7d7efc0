"""What each node and the coordinator is told: everything agreed on, and its own places."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.builders import architecture, consortium

from pcmoe_node.config import CoordinatorConfig, NodeConfig
from pcmoe_node.errors import ConfigError
from pcmoe_operator.agreement import canonical, digest
from pcmoe_operator.nodeconfig import NodePlaces, Places, coordinator_config, identity_of, node_config
from pcmoe_operator.plan import make_plan
from pcmoe_operator.schema import Consortium

PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


SHARED: dict[str, Any] = {
    "listen": "127.0.0.1:8443",
    "status_listen": "127.0.0.1:0",
    "coordinator": "127.0.0.1:8444",
    "certificates": Path("certificates"),
    "log": Path("log"),
}
VOLUMES: dict[str, Any] = {
    "dataset": Path("volumes/dataset"),
    "model": Path("volumes/model"),
    "checkpoint": Path("checkpoint"),
}


def places(**changes: Any) -> NodePlaces:
    return NodePlaces(**(SHARED | VOLUMES | changes))


def coordinating(consortium: Consortium, **changes: Any) -> CoordinatorConfig:
    return coordinator_config(consortium, make_plan(consortium), Places(**(SHARED | changes)))


def made(consortium: Consortium, participant: str = "berlin", **changes: Any) -> NodeConfig:
    return node_config(consortium, make_plan(consortium), participant, places(**changes))


def test_a_configuration_survives_the_way_through_a_file(tmp_path: Path) -> None:
    for count in (1, 2, 3, 4):
        config = made(consortium(count))
        path = tmp_path / "config.json"
        path.write_text(config.model_dump_json(indent=2))
        assert NodeConfig.load(path) == config
        told = coordinating(consortium(count))
        path.write_text(told.model_dump_json(indent=2))
        assert CoordinatorConfig.load(path) == told


def test_a_configuration_may_lie_in_several_files_with_each_field_in_one(tmp_path: Path) -> None:
    config = made(consortium(2))
    shared, own = tmp_path / "nodes.json", tmp_path / "node.json"
    shared.write_text(config.model_dump_json(exclude={"participant", "quota"}))
    own.write_text(config.model_dump_json(include={"participant", "quota"}))
    assert NodeConfig.load(shared, own) == NodeConfig.load(own, shared) == config
    own.write_text(config.model_dump_json(include={"participant", "quota", "threads"}))
    with pytest.raises(ConfigError, match=r"node\.json: threads: said in another file already"):
        NodeConfig.load(shared, own)
    own.write_text("[]")
    with pytest.raises(ConfigError, match=r"node\.json: must be an object in JSON"):
        NodeConfig.load(shared, own)
    own.write_text("{}")
    with pytest.raises(ConfigError, match=r"nodes\.json, .*node\.json: participant: Field required"):
        NodeConfig.load(shared, own)
    with pytest.raises(ConfigError, match=r"none\.json: can't be read"):
        NodeConfig.load(shared, tmp_path / "none.json")


def test_every_field_that_is_agreed_on_arrives() -> None:
    training = {
        "schedule": "Sequential",
        "rounds": 3,
        "stepsPerRound": 6,
        "microBatchesPerStep": 5,
        "inFlight": 3,
        "sequencesPerMicroBatch": 7,
        "sequenceLength": 24,
        "deterministic": True,
        "evaluation": {"sequences": 9, "everyRounds": 2},
        "auxiliaryLossCoefficient": "0.01",
        "seed": 11,
        "optimizer": {
            "learningRate": "3e-4",
            "beta1": "0.8",
            "beta2": "0.99",
            "epsilon": "1e-7",
            "weightDecay": "0.01",
            "warmupSteps": 5,
            "decay": "Linear",
            "maxGradNorm": "0.5",
        },
    }
    transport = {"wireDtype": "bfloat16", "connections": 3, "maxAbs": "500"}
    policy = {
        "onPeerLoss": "Fail",
        "peerTimeoutSeconds": 4,
        "progressTimeoutSeconds": 5,
        "rejoinTimeoutSeconds": 6,
    }
    agreed = {
        "agreement.training": training,
        "agreement.transport": transport,
        "agreement.failurePolicy": policy,
        "agreement.checkpoint.keep": 5,
    }
    config = made(consortium(3, agreed)).model_dump()
    assert config["training"] == {
        "schedule": "Sequential",
        "rounds": 3,
        "steps_per_round": 6,
        "micro_batches_per_step": 5,
        "in_flight": 3,
        "sequences_per_micro_batch": 7,
        "sequence_length": 24,
        "deterministic": True,
        "evaluation_sequences": 9,
        "evaluation_every_rounds": 2,
        "auxiliary_loss_coefficient": 0.01,
        "optimizer": {
            "learning_rate": 3e-4,
            "beta1": 0.8,
            "beta2": 0.99,
            "epsilon": 1e-7,
            "weight_decay": 0.01,
            "warmup_steps": 5,
            "decay": "Linear",
            "max_grad_norm": 0.5,
        },
    }
    assert config["transport"] == {
        "wire_dtype": "bfloat16",
        "connections": 3,
        "peer_timeout_seconds": 4,
        "progress_timeout_seconds": 5,
        "rejoin_timeout_seconds": 6,
        "on_peer_loss": "Fail",
        "max_abs": 500.0,
    }
    assert (config["checkpoint_keep"], config["model"]["seed"], config["threads"]) == (5, 11, 1)


def test_all_nodes_are_told_the_same_but_for_what_is_their_own() -> None:
    whole = consortium(3)
    own = {"participant", "quota"}
    configs = [made(whole, name).model_dump() for name in whole.names]
    shared = [{key: value for key, value in config.items() if key not in own} for config in configs]
    assert shared[0] == shared[1] == shared[2]
    assert [config["participant"] for config in configs] == ["berlin", "lyon", "oslo"]
    assert len({config["quota"]["rows_per_message"] for config in configs}) == 1
    assert len({config["quota"]["slots_per_row"] for config in configs}) == 1


def test_identities_and_digests_are_those_of_the_agreement() -> None:
    whole = consortium(["lyon", "berlin"])
    config = made(whole)
    assert [peer.identity for peer in config.participants] == [
        "berlin.hospitals-2026.pcmoe.internal",
        "lyon.hospitals-2026.pcmoe.internal",
    ]
    assert identity_of("lyon", "hospitals-2026") == config.participants[1].identity
    assert config.identity.agreement == canonical(whole)
    assert config.identity.agreement_digest == digest(whole)
    assert config.identity.plan_digest == make_plan(whole).digest
    assert config.index == 0


def test_peers_are_where_the_runner_or_else_the_roster_says() -> None:
    roster = [{"name": "lyon", "endpoint": "lyon.example:443", "caBundle": PEM}, {"name": "oslo"}]
    whole = consortium(3, {"roster": roster})
    config = made(whole, endpoints={"berlin": "127.0.0.1:1"}, ca_bundles={"berlin": "pem of berlin"})
    assert [peer.endpoint for peer in config.participants] == ["127.0.0.1:1", "lyon.example:443", None]
    assert [peer.ca_bundle for peer in config.participants] == ["pem of berlin", PEM, ""]


def test_local_settings_reach_their_own_node_only() -> None:
    local = [
        {
            "name": "lyon",
            "gpus": 1,
            "device": "CUDA",
            "gradientCheckpointing": True,
            "cpuThreads": 3,
            "dataset": {"path": "notes", "format": "Text", "textField": "body", "heldOutPercent": 20},
        },
        {"name": "berlin"},
    ]
    whole = consortium(3, {"local": local})
    lyon, berlin = (
        made(whole, "lyon", order_secret=Path("secret")),
        made(whole, "berlin", dataset=Path("/data")),
    )
    assert (lyon.device, lyon.gradient_checkpointing, lyon.threads) == ("CUDA", True, 3)
    assert lyon.dataset.model_dump() == {
        "path": "volumes/dataset/notes",
        "format": "Text",
        "text_field": "body",
        "held_out_percent": 20,
    }
    assert (lyon.order_secret_file, berlin.order_secret_file) == ("secret", None)
    assert (berlin.device, berlin.dataset.path, berlin.threads) == ("Auto", "/data/train.jsonl", 0)
    with pytest.raises(KeyError):
        made(whole, "oslo")


def test_a_model_starts_from_its_checkpoint_or_from_its_seed() -> None:
    source = {"checkpoint": {"fingerprint": "sha256:" + "a" * 64, "config": architecture()}}
    kept = made(consortium(2, {"agreement.model.source": source})).model
    assert (kept.checkpoint, kept.fingerprint) == ("volumes/model", "sha256:" + "a" * 64)
    drawn = made(consortium(2)).model
    assert (drawn.checkpoint, drawn.fingerprint) == (None, None)
    assert json.loads(drawn.architecture) == json.loads(architecture())


def test_the_placement_is_the_plans() -> None:
    whole = consortium(3)
    config = made(whole)
    assert [(layer.layer, layer.hosts) for layer in config.placement] == [
        (layer.layer, layer.hosts) for layer in make_plan(whole).placement
    ]


def test_whoever_is_lost_is_waited_for_unless_the_agreement_says_otherwise() -> None:
    assert made(consortium(2)).transport.on_peer_loss == "Wait"


def test_everybody_is_told_the_same_of_the_coordinator_and_its_hosts_ca_signs_for_it() -> None:
    whole = consortium(3, {"agreement.coordinator": "lyon"})
    bundles = {"berlin": "pem of berlin", "lyon": "pem of lyon"}
    told = coordinating(whole, ca_bundles=bundles)
    assert told.coordinator.model_dump() == {
        "name": "coordinator",
        "identity": "coordinator.hospitals-2026.pcmoe.internal",
        "endpoint": "127.0.0.1:8444",
        "ca_bundle": "pem of lyon",
    }
    for name in whole.names:
        assert made(whole, name, ca_bundles=bundles).coordinator == told.coordinator
    roster = [{"name": "lyon", "caBundle": PEM}]
    assert (
        coordinating(consortium(2, {"agreement.coordinator": "lyon", "roster": roster})).coordinator.ca_bundle
        == PEM
    )


def test_the_coordinator_holds_the_same_agreement_as_the_nodes() -> None:
    whole = consortium(3, {"agreement.failurePolicy.peerTimeoutSeconds": 4})
    told, node = coordinating(whole), made(whole)
    assert told.identity == node.identity
    assert told.participants == node.participants
    assert told.peer_timeout_seconds == 4
    assert (told.log_directory, told.status_listen) == ("log", "127.0.0.1:0")


def test_a_node_leaves_its_last_status_where_it_is_told_to_or_nowhere() -> None:
    whole = consortium(2)
    assert made(whole).termination_message is None
    assert (
        made(whole, termination_message=Path("/dev/termination-log")).termination_message
        == "/dev/termination-log"
    )
