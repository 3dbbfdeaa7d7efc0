"""What alerts are for is done to real processes, and a real Prometheus says so, and by whom; then it says no more.

The rules are the chart's, but what has to be so for minutes has to be so for seconds.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from tests.exchange.strangers import authority_of, certificate, install
from tests.faults.consortium import Consortium, Process, running, through_proxies
from tests.faults.proxy import FaultProxy
from tests.monitoring import gpu_node
from tests.monitoring.gpu_node import GIB, TOTAL, steer
from tests.monitoring.prometheus import Prometheus, Target, at_once
from tests.monitoring.trained import SOON_TOO_FAST, configs_of, overflowing, targets
from tools.dashboards.__main__ import FOLDER

AMSTERDAM, BERLIN = 0, 1
pytestmark = pytest.mark.timeout(240)


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """A consortium of two, amsterdam and berlin, and who looks at it."""

    consortium: Consortium
    prometheus: Prometheus


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The chart's rules, made impatient."""
    path = tmp_path / "rules.yaml"
    path.write_text(at_once((FOLDER.parent / "files" / "alerts.yaml").read_text()))
    return path


class Starter:
    """Consortia that are watched."""

    def __init__(self, stack: ExitStack, program: Path, folder: Path, rules: Path) -> None:
        self._stack, self._program, self._folder, self._rules = stack, program, folder, rules

    def watch(self, pages: list[Target]) -> Prometheus:
        """A Prometheus that reads these pages."""
        return self._stack.enter_context(
            Prometheus(self._program, self._folder / "prometheus", pages, self._rules)
        )

    def train(self, rounds: int = 7, spoiled: bool = False, **faults: str) -> Watched:
        """A consortium that has finished so many rounds; `spoiled`: with numbers that overflow."""
        configs = configs_of(self._folder)
        configs = overflowing(configs) if spoiled else configs
        return self._watched(self._stack.enter_context(running(configs, **faults)), rounds)

    def train_through_proxies(self) -> tuple[Watched, list[FaultProxy]]:
        """The same over lines that can be cut, first those to the participants; a minute of silence is agreed."""
        configs = configs_of(self._folder, peer_timeout_seconds=60)
        rerouted, proxies = through_proxies(configs, self._stack)
        consortium = Consortium(rerouted, coordinator_listen=configs[0].coordinator.endpoint)
        self._stack.enter_context(consortium).start()
        return self._watched(consortium, 7), proxies

    def train_too_fast(self) -> Watched:
        """A consortium that soon unlearns; large hidden states are agreed to be right."""
        configs = configs_of(self._folder, training={"optimizer": SOON_TOO_FAST}, max_abs=1e30)
        return self._watched(self._stack.enter_context(running(configs)), 0)

    def train_alone_on_a_gpu(self, steering: Path) -> Watched:
        """One node, amsterdam, whose GPU says what is in the file; see `gpu_node`."""
        consortium = self._stack.enter_context(Consortium(configs_of(self._folder, participants=1)))
        [real] = consortium.nodes
        config = real.log_file.with_name("config.json")
        command = [gpu_node.__file__, str(steering), "--config", str(config)]
        consortium.nodes = [Process(real.name, real.log_file, lambda _fault: command)]
        consortium.start()
        return self._watched(consortium, 1)

    def _watched(self, consortium: Consortium, rounds: int) -> Watched:
        prometheus = self.watch(targets(consortium))
        consortium.round(rounds)
        return Watched(consortium=consortium, prometheus=prometheus)


@pytest.fixture
def started(rules: Path, monitoring_programs: dict[str, Path], tmp_path: Path) -> Iterator[Starter]:
    """Starts what a test wants; ends it with the test."""
    with ExitStack() as stack:
        yield Starter(stack, monitoring_programs["prometheus"], tmp_path, rules)


def test_a_killed_peer_is_named_until_it_is_back(started: Starter) -> None:
    here = started.train()
    here.prometheus.until("pcmoe_node_usual_round_seconds")
    here.consortium.nodes[BERLIN].kill()
    here.prometheus.until_fires("PCMoEParticipantAway", participant="berlin")
    here.prometheus.until_fires("PCMoEWaiting", participant="amsterdam")
    here.prometheus.until_fires("PCMoENoView")
    here.prometheus.until_fires("PCMoENoCommit", consortium="pilot")
    assert not here.prometheus.query('ALERTS{alertname="PCMoEParticipantAway",participant="amsterdam"}')
    assert "PCMoEPeerDown" not in here.prometheus.firing(), "who waits is connected to nobody"
    here.consortium.nodes[BERLIN].start()
    for alert in ("PCMoEParticipantAway", "PCMoEWaiting", "PCMoENoView", "PCMoENoCommit"):
        here.prometheus.until_over(alert)


def test_a_line_that_breaks_is_told_by_both_its_ends_and_how_often_it_breaks(started: Starter) -> None:
    here, proxies = started.train_through_proxies()
    lines = proxies[: len(here.consortium.configs)]
    here.prometheus.until("min(pcmoe_node_peer_up) == 1")
    for line in lines:
        line.cut()
    here.prometheus.until_fires("PCMoEPeerDown", participant="amsterdam", peer="berlin")
    here.prometheus.until_fires("PCMoEPeerDown", participant="berlin", peer="amsterdam")
    for line in lines:
        line.heal()
    here.prometheus.until_over("PCMoEPeerDown")
    for _ in range(5):
        for line in lines:
            line.cut()
        here.prometheus.until("max(pcmoe_node_peer_up) == 0")
        for line in lines:
            line.heal()
        here.prometheus.until("min(pcmoe_node_peer_up) == 1")
    here.prometheus.until_fires("PCMoEConnectionsBreak", participant="amsterdam")
    assert here.prometheus.query("sum(pcmoe_node_views_lost_total)") == [({}, 0.0)]


def test_a_coordinator_that_is_gone_is_missed_while_its_nodes_train(started: Starter) -> None:
    here = started.train()
    here.prometheus.until("pcmoe_coordinator_view")
    here.consortium.coordinator.kill()
    here.prometheus.until_fires("PCMoECoordinatorDown", consortium="pilot")
    here.consortium.coordinator.start()
    here.prometheus.until_over("PCMoECoordinatorDown")


def test_a_certificate_that_was_not_renewed_is_told_until_it_is(started: Starter) -> None:
    here = started.train()
    config = here.consortium.configs[BERLIN]
    name = [x509.DNSName(config.participants[BERLIN].identity)]
    install(config, certificate(authority_of(config), names=name, end=timedelta(hours=5)))
    here.prometheus.until_fires("PCMoECertificateExpires", participant="berlin")
    assert not here.prometheus.query('ALERTS{alertname="PCMoECertificateExpires",participant="amsterdam"}')
    install(config, certificate(authority_of(config), names=name, end=timedelta(days=7)))
    here.prometheus.until_over("PCMoECertificateExpires")


def test_strangers_at_the_door_are_told_by_what_they_lack(started: Starter) -> None:
    here = started.train()
    here.prometheus.until('pcmoe_node_refused_connections_total{participant="amsterdam"} == 0')
    host, _, port = str(here.consortium.configs[AMSTERDAM].identity.listen).rpartition(":")
    for _ in range(10):
        with socket.create_connection((host, int(port)), timeout=5) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            stranger.recv(100)
    here.prometheus.until_fires("PCMoERefusedConnections", participant="amsterdam", reason="handshake")


def test_a_slow_partner_shows_where_others_wait_for_it(started: Starter) -> None:
    here = started.train(rounds=1, berlin="forward@*=sleep:0.5")
    here.prometheus.until_fires("PCMoEExchangeWait", participant="amsterdam")
    assert not here.prometheus.query('ALERTS{alertname="PCMoEExchangeWait",participant="berlin"}')


def test_numbers_that_overflow_are_told_while_steps_are_skipped(started: Starter) -> None:
    slowly = "forward@*=sleep:1"  # ten overflows in a row end a node
    here = started.train(rounds=0, spoiled=True, amsterdam=slowly, berlin=slowly)
    here.prometheus.until_fires("PCMoELossNotFinite", participant="berlin")
    here.prometheus.until_fires("PCMoEStepsSkipped", participant="berlin")
    for node in here.consortium.nodes:
        assert node.wait(60) == 69, here.consortium.everything()


def test_a_loss_that_rises_again_is_told(started: Starter) -> None:
    here = started.train_too_fast()
    here.prometheus.until_fires("PCMoELossDiverges", participant="amsterdam")
    here.prometheus.until_fires("PCMoELossDiverges", participant="berlin")
    [(_, lowest)] = here.prometheus.query('min_over_time(pcmoe_node_held_out_loss{participant="berlin"}[7d])')
    [(_, loss)] = here.prometheus.query('pcmoe_node_held_out_loss{participant="berlin"}')
    assert loss > 1.5 * lowest
    assert "PCMoELossNotFinite" not in here.prometheus.firing()


def test_a_gpu_that_is_full_counts_errors_or_is_gone_is_told(started: Starter, tmp_path: Path) -> None:
    steering = tmp_path / "gpu.json"
    steer(steering)
    here = started.train_alone_on_a_gpu(steering)
    here.prometheus.until('pcmoe_node_gpu_info{state="ok"} == 1')
    here.prometheus.until('pcmoe_node_gpu_errors_total{kind="ecc_uncorrected"} == 1')
    steer(steering, used=TOTAL - 2 * GIB, uncorrected=2)
    here.prometheus.until_fires("PCMoEGPUMemoryFull", participant="amsterdam")
    here.prometheus.until_fires("PCMoEGPUErrors", participant="amsterdam")
    assert "PCMoEGPULost" not in here.prometheus.firing()
    steer(steering, lost=True)
    here.prometheus.until_fires("PCMoEGPULost", participant="amsterdam")
    here.prometheus.until_over("PCMoEGPUMemoryFull")
    steer(steering)
    here.prometheus.until_over("PCMoEGPULost")
