"""Ten minutes each: random faults end in the same bits, and certificates that live for two minutes cost no step."""

import random
import signal
import threading
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from tests.exchange.strangers import authority_of, certificate
from tests.faults.consortium import Consortium, through_proxies
from tests.faults.proxy import FaultProxy
from tests.training.runs import QWEN3_MOE, Case, assert_same_bits, configs_of, rounds_of, run_local, stored_of

from pcmoe_node.config import NodeConfig
from pcmoe_operator.pki import KeyPair, write_private

MINUTES = 10.0
TRANSPORT = {
    "on_peer_loss": "Wait",
    "peer_timeout_seconds": 3,
    "progress_timeout_seconds": 60,
    "rejoin_timeout_seconds": 240,
}


def case(rounds: int) -> Case:
    """A run of so many short rounds, the same bits each time."""
    return Case(
        n=3,
        deterministic=True,
        rounds=rounds,
        steps_per_round=4,
        micro_batches=2,
        in_flight=2,
        architecture=dict(QWEN3_MOE),
        overrides={"transport": TRANSPORT},
    )


class Chaos:
    """One fault after the other, drawn from a seed, until the time is over."""

    def __init__(self, consortium: Consortium, proxies: list[FaultProxy], seed: int) -> None:
        self._consortium = consortium
        self._proxies = proxies
        self._luck = random.Random(seed)
        self.done: dict[str, int] = {}

    def strike(self) -> None:
        """One fault, and a pause for what follows from it."""
        what = self._luck.choice(("kill", "kill", "stop", "coordinator", "cut", "long cut", "freeze", "flip"))
        self.done[what] = self.done.get(what, 0) + 1
        node = self._luck.choice(self._consortium.nodes)
        proxy = self._luck.choice(self._proxies)
        if what == "kill" and node.poll() is None:
            node.kill()
        elif what == "stop" and node.poll() is None:
            node.send(signal.SIGSTOP)
            time.sleep(self._luck.uniform(0.5, 6.0))  # shorter and longer than the agreed silence
            node.send(signal.SIGCONT)
        elif what == "coordinator" and self._consortium.coordinator.poll() is None:
            self._consortium.coordinator.kill()
        elif what in ("cut", "long cut"):
            proxy.cut()
            time.sleep(self._luck.uniform(0.2, 2.0) if what == "cut" else 5.0)  # the network is gone
            proxy.heal()
        elif what == "freeze":
            proxy.freeze()
            time.sleep(self._luck.uniform(0.5, 5.0))  # the network is silent
            proxy.thaw()
        else:
            proxy.flip()
        time.sleep(self._luck.uniform(0.0, 6.0))  # until the next one


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", [1])
def test_ten_minutes_of_random_faults_end_in_the_same_bits(seed: int, tmp_path: Path) -> None:
    run = case(rounds=900)
    undisturbed = configs_of(run, tmp_path / "undisturbed")
    began = time.monotonic()
    run_local(undisturbed, timeout=3600)
    calm = time.monotonic() - began
    with ExitStack() as stack:
        configs = configs_of(run, tmp_path / "disturbed")
        rerouted, proxies = through_proxies(configs, stack)
        listen = configs[0].coordinator.endpoint
        consortium = stack.enter_context(Consortium(rerouted, coordinator_listen=listen))
        consortium.start()
        chaos, end = Chaos(consortium, proxies, seed), time.monotonic() + 60 * MINUTES
        while time.monotonic() < end and not all(node.poll() == 0 for node in consortium.nodes):
            chaos.strike()
            for process in (*consortium.nodes, consortium.coordinator):
                code = process.poll()
                if code not in (None, 0):
                    assert code in (75, 137), f"{process.name} ended with {code}:\n{consortium.everything()}"
                    process.codes.append(int(code or 0))
                    process.start()
        consortium.finish(300 + 3 * calm)  # what is left, on a machine that may be busier now
        assert sum(chaos.done.values()) >= 20, chaos.done
        assert all("Traceback" not in process.log for process in consortium.nodes)
        assert_same_bits(stored_of(rerouted, run.rounds), stored_of(undisturbed, run.rounds))


def leaf(authority: KeyPair, identity: str, seconds: float, folder: Path) -> None:
    """A new certificate that lives for so long; its key is written first, as a careless tool would."""
    made = certificate(
        authority, names=[x509.DNSName(identity)], start=timedelta(0), end=timedelta(seconds=seconds)
    )
    write_private(folder / "tls.key", made.key)
    write_private(folder / "tls.crt", made.certificate)


def renewing(configs: list[NodeConfig], life: float, stop: threading.Event) -> threading.Thread:
    """Somebody outside who renews every certificate, the coordinator's too, when half of its life is over."""
    folders = [Path(config.identity.certificate_directory) for config in configs]
    home = folders[0].parents[1] / "coordinator" / "certificates"
    first = authority_of(configs[0])

    def renew() -> None:
        for config, folder in zip(configs, folders, strict=True):
            leaf(authority_of(config), config.participants[config.index].identity, life, folder)
        leaf(first, configs[0].coordinator.identity, life, home)

    def again_and_again() -> None:
        while not stop.wait(life / 2):
            renew()

    renew()
    thread = threading.Thread(target=again_and_again, name="renewal", daemon=True)
    thread.start()
    return thread


def train_with_short_certificates(tmp_path: Path, life: float, seconds: float) -> None:
    """Train for so long with certificates that live for `life`: no view is left, no step is skipped."""
    run = case(rounds=100_000)
    configs = configs_of(run, tmp_path)
    stop = threading.Event()
    thread = renewing(configs, life, stop)
    try:
        with Consortium(configs) as consortium:
            consortium.start()
            consortium.round(1)
            time.sleep(seconds)  # this is what is tested: that nothing happens
            for index, node in enumerate(consortium.nodes):
                status = consortium.status(index)
                assert (status["view"], status["viewsLost"]) == (1, 0), node.tail()
                assert status["committed"] > 1
                assert node.log.count("a new certificate is in use") >= int(seconds / life), node.tail()
                assert "the coordinator is away" not in node.log
                assert all(record["stepsSkipped"] == 0 for record in rounds_of(consortium.configs[index]))
            assert consortium.status(0)["reconnections"] > 0
    finally:
        stop.set()
        thread.join(5)


@pytest.mark.timeout(180)
def test_certificates_that_live_for_seconds_cost_no_step(tmp_path: Path) -> None:
    train_with_short_certificates(tmp_path, life=10.0, seconds=25.0)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_certificates_that_live_for_two_minutes_cost_no_step_in_ten(tmp_path: Path) -> None:
    train_with_short_certificates(tmp_path, life=120.0, seconds=60 * MINUTES)
