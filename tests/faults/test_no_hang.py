"""Whatever happens to a node, a disk or the network: everybody ends within a deadline, for the right reason."""

import json
import resource
import shutil
import signal
import socket
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from tests.exchange.rigs import changed, free_port
from tests.exchange.strangers import authority_of, certificate, install
from tests.faults.consortium import Consortium, process_of, running, through_proxies
from tests.faults.nursery import interpreter
from tests.training.small import architecture, small_configs

from pcmoe_node.config import NodeConfig
from pcmoe_operator.answers import NodeSeen

PEER, PROGRESS, REJOIN = 2, 4, 8
SLACK = 12.0
"""Seconds beyond a deadline that the slowest machine may take to notice, tell, and end."""
NAMES = ("amsterdam", "berlin", "lyon")


def configs_of(folder: Path, n: int = 3, policy: str = "Fail", **overrides: Any) -> list[NodeConfig]:
    """Small nodes that train for longer than any test waits, with short deadlines."""
    training = {"rounds": 1000, "steps_per_round": 5, **overrides.pop("training", {})}
    transport = {
        "peer_timeout_seconds": PEER,
        "progress_timeout_seconds": PROGRESS,
        "rejoin_timeout_seconds": REJOIN,
        "on_peer_loss": policy,
        **overrides.pop("transport", {}),
    }
    fields = architecture("olmoe", num_hidden_layers=1)
    return small_configs(folder, n, fields, training=training, transport=transport, **overrides)


def all_end(
    consortium: Consortium, code: int, naming: str, seconds: float, survivors: tuple[int, ...]
) -> None:
    """Every survivor ends with this code, and its last error and its termination message name the cause."""
    began = time.monotonic()
    for index in survivors:
        node = consortium.nodes[index]
        assert node.wait(seconds) == code, consortium.everything()
        assert naming in node.last_error(), node.tail()
        assert "Traceback" not in node.log
        left = Path(str(consortium.configs[index].termination_message)).read_text()
        assert json.loads(left)["exitCode"] == code
        seen = NodeSeen.parse(left)
        assert seen is not None and naming in seen.error, "what the operator makes of it"
        with socket.socket() as probe:  # nobody listens there any more
            probe.settimeout(2)
            host, _, port = consortium.configs[index].status_listen.rpartition(":")
            assert probe.connect_ex((host, int(port))) != 0
    assert time.monotonic() - began < seconds


def test_a_stopped_process_is_a_lost_peer_and_named(tmp_path: Path) -> None:
    with running(configs_of(tmp_path)) as consortium:
        consortium.step(3)
        consortium.nodes[1].send(signal.SIGSTOP)
        all_end(consortium, 75, "berlin is lost: no byte for 2 s", PEER + SLACK, (0, 2))


def test_a_process_that_computes_for_ever_ends_the_others_at_the_progress_deadline(tmp_path: Path) -> None:
    with running(configs_of(tmp_path), berlin="forward@4=sleep:600") as consortium:
        all_end(consortium, 75, "berlin", 90.0, (0, 2))
        assert "made no progress for 4 s" in consortium.nodes[0].log + consortium.nodes[2].log
        assert "→ berlin" in consortium.nodes[0].log + consortium.nodes[2].log, "who waits for whom"


def test_a_process_that_hangs_ends_itself_and_is_started_again(tmp_path: Path) -> None:
    configs = configs_of(
        tmp_path, 2, policy="Wait", training={"rounds": 4}, transport={"rejoin_timeout_seconds": 60}
    )
    with running(configs, berlin="forward@4=sleep:600") as consortium:
        assert consortium.nodes[1].wait(90) == 75, consortium.everything()
        assert "this process hangs" in consortium.nodes[1].last_error()
        assert "_train_micro_batch" in consortium.nodes[1].log, "where it hung"
        consortium.nodes[1].start()
        for node in consortium.nodes:
            assert node.wait(90) == 0, consortium.everything()


def test_a_slow_node_that_makes_progress_is_no_error(tmp_path: Path) -> None:
    # One micro-batch takes half the progress deadline, a step longer than all of it.
    training = {"rounds": 1, "steps_per_round": 2, "micro_batches_per_step": 3}
    with running(configs_of(tmp_path, 2, training=training), berlin="forward@*=sleep:2") as consortium:
        began = time.monotonic()
        for node in consortium.nodes:
            assert node.wait(90) == 0, consortium.everything()
        assert time.monotonic() - began > 3 * PROGRESS - 1


def test_a_lost_peer_that_does_not_come_back_ends_the_others_when_waiting_is_over(tmp_path: Path) -> None:
    with running(configs_of(tmp_path, policy="Wait")) as consortium:
        consortium.step(3)
        consortium.nodes[1].kill()
        consortium.until(0, lambda status: status["phase"] == "WAITING", PEER + SLACK)
        status = consortium.until(0, lambda status: "berlin" in str(status["waitingFor"]), SLACK)
        assert "berlin is not connected" in status["waitingFor"]
        naming = "no view within 8 s: berlin is not connected"
        all_end(consortium, 75, naming[:15], REJOIN + SLACK, (0, 2))
        assert "berlin" in consortium.nodes[0].last_error()


def test_a_full_disk_ends_everybody_naming_whose_and_why(tmp_path: Path) -> None:
    with running(configs_of(tmp_path, policy="Wait"), lyon="store@2=ENOSPC") as consortium:
        all_end(consortium, 74, "No space left on device", 90.0, (0, 1, 2))
        assert "lyon ended the run" in consortium.nodes[0].last_error()


def test_a_file_that_may_grow_no_further_is_a_full_disk(tmp_path: Path) -> None:
    configs = configs_of(tmp_path, 2, policy="Wait")
    with Consortium(configs, spawn=interpreter) as consortium:
        consortium.coordinator.start()
        consortium.nodes[0].start()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))  # a child inherits it
        try:
            consortium.nodes[1].start()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        all_end(consortium, 74, "can't be stored", 90.0, (0, 1))
        assert "berlin ended the run" in consortium.nodes[0].last_error()


def test_a_lost_disk_ends_everybody_naming_whose_and_nobody_goes_back_to_the_beginning(
    tmp_path: Path,
) -> None:
    configs = configs_of(tmp_path, policy="Wait", transport={"rejoin_timeout_seconds": 60})
    with running(configs) as consortium:
        consortium.round(3)
        consortium.nodes[2].kill()
        shutil.rmtree(configs[2].checkpoint_directory)
        consortium.nodes[2].start()
        all_end(consortium, 66, "lyon holds none", 60.0, (0, 1, 2))
        assert "round 0" not in consortium.nodes[0].tail(3)


def test_a_port_that_is_taken_ends_everybody_naming_it(tmp_path: Path) -> None:
    configs = configs_of(tmp_path, 2, policy="Wait")
    listen = str(configs[1].identity.listen)
    with socket.create_server(("127.0.0.1", int(listen.rpartition(":")[2]))), running(configs) as consortium:
        all_end(consortium, 66, f"{listen}: can't listen there", 90.0, (0, 1))
        assert "berlin ended the run" in consortium.nodes[0].last_error()


def test_an_agreement_that_differs_ends_everybody_before_anything_is_trained(tmp_path: Path) -> None:
    # The second one starts in its own time.
    configs = configs_of(tmp_path, 2, policy="Wait", transport={"rejoin_timeout_seconds": 60})
    other = {"agreement": json.dumps({"id": "test-2026", "training": {"rounds": 3}})}
    other["agreement_digest"] = "sha256:" + "c" * 64
    configs[1] = changed(configs[1], identity=other)
    with Consortium(configs) as consortium:
        consortium.coordinator.start()
        consortium.nodes[0].start()
        consortium.until(0, lambda status: "berlin is not connected" in str(status["waitingFor"]))
        consortium.nodes[1].start()
        all_end(consortium, 67, "training.rounds", 90.0, (0, 1))


def test_a_certificate_of_a_clock_that_is_ahead_is_refused_with_its_dates(tmp_path: Path) -> None:
    configs = configs_of(tmp_path, 2, policy="Wait")
    name = [x509.DNSName(configs[1].participants[1].identity)]
    early = certificate(authority_of(configs[1]), names=name, start=timedelta(minutes=5))
    install(configs[1], early)
    with Consortium(configs) as consortium:
        consortium.nodes[1].start()
        assert consortium.nodes[1].wait(60) == 67
        assert "is valid from" in consortium.nodes[1].last_error()
        assert "must be valid now" in consortium.nodes[1].last_error()


def test_a_coordinator_that_nobody_reaches_is_named_when_waiting_is_over(tmp_path: Path) -> None:
    with Consortium(configs_of(tmp_path, 2, policy="Wait")) as consortium:
        for node in consortium.nodes:
            node.start()
        all_end(consortium, 75, "the coordinator can't be asked: 127.0.0.1:", 90.0, (0, 1))


def test_two_processes_of_one_participant_the_older_ends_and_the_newer_trains(tmp_path: Path) -> None:
    configs = configs_of(tmp_path, 2, policy="Wait", training={"rounds": 40})
    with running(configs) as consortium:
        consortium.step(3)
        older = consortium.nodes[0]
        older.send(signal.SIGSTOP)  # Kubernetes takes its machine for dead, and starts another pod elsewhere
        elsewhere = changed(
            consortium.configs[0],
            identity={"listen": f"127.0.0.1:{free_port()}"},
            status_listen=f"127.0.0.1:{free_port()}",
        )
        newer = process_of(elsewhere, "elsewhere")
        try:
            newer.start()
            consortium.until(1, lambda status: status["view"] >= 2)
            older.send(signal.SIGCONT)
            assert older.wait(30) == 67, older.tail()
            assert "another process of " in older.last_error()
            assert newer.wait(90) == 0, newer.tail()
            assert consortium.nodes[1].wait(10) == 0
        finally:
            newer.kill()


def test_a_network_that_swallows_everything_ends_both_sides_in_time(tmp_path: Path) -> None:
    with ExitStack() as stack:
        configs = configs_of(tmp_path, 2)
        rerouted, proxies = through_proxies(configs, stack)
        listen = configs[0].coordinator.endpoint
        consortium = stack.enter_context(Consortium(rerouted, coordinator_listen=listen))
        consortium.start()
        consortium.step(3)
        for proxy in proxies[:-1]:
            proxy.freeze()
        all_end(consortium, 75, "no byte for 2 s", PEER + SLACK, (0, 1))
