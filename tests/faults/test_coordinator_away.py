"""The coordinator's absence stops commits and returns, never steps; a cut stops nothing at all for long."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests.faults.consortium import Consortium, running, through_proxies
from tests.faults.test_resume import CASE
from tests.training.runs import assert_same_bits, configs_of, run_local, stored_of
from torch import Tensor

from pcmoe_node.checkpoint import Checkpoints

LONG = replace(CASE, rounds=30)
"""Enough rounds for things to happen in the middle."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Tensor]]]:
    """What the run ends in that nobody disturbs."""
    configs = configs_of(LONG, tmp_path_factory.mktemp("reference"))
    run_local(configs)
    yield stored_of(configs, LONG.rounds)


def rounds_on_disk(consortium: Consortium, index: int) -> tuple[int, ...]:
    """What a node has stored."""
    return Checkpoints(Path(consortium.configs[index].checkpoint_directory), 2).rounds()


@pytest.mark.timeout(240)
def test_steps_go_on_without_a_coordinator_and_commits_catch_up_when_one_is_back(
    reference: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    with running(configs_of(LONG, tmp_path)) as consortium:
        consortium.round(2)
        consortium.coordinator.kill()
        before = consortium.status(0)["committed"]
        consortium.round(before + 6)
        status = consortium.status(0)
        assert status["committed"] <= before + 1, "nobody commits"
        assert status["view"] == 1
        consortium.coordinator.start()
        consortium.until(0, lambda status: status["committed"] >= before + 6)
        consortium.finish(120, restart=False)
        assert all("leaving view" not in node.log for node in consortium.nodes)
        for index in range(LONG.n):
            assert rounds_on_disk(consortium, index) == (LONG.rounds - 1, LONG.rounds)
        assert_same_bits(stored_of(consortium.configs, LONG.rounds), reference)


@pytest.mark.timeout(240)
def test_nobody_ends_before_the_last_commit_and_a_lost_node_waits_for_the_coordinator(
    reference: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    with running(configs_of(LONG, tmp_path)) as consortium:
        consortium.round(2)
        consortium.coordinator.kill()
        consortium.nodes[1].kill()
        consortium.nodes[1].start()
        consortium.until(0, lambda status: status["phase"] == "WAITING")
        consortium.until(1, lambda status: status["phase"] == "WAITING")
        consortium.coordinator.start()
        consortium.until(0, lambda status: status["view"] == 2 and status["phase"] == "TRAINING")
        consortium.coordinator.kill()
        consortium.until(0, lambda status: status["phase"] == "COMMITTING")
        time.sleep(1.0)  # it would have ended by now
        assert [node.poll() for node in consortium.nodes] == [None, None, None]
        consortium.coordinator.start()
        consortium.finish(60, restart=False)
        assert_same_bits(stored_of(consortium.configs, LONG.rounds), reference)


@pytest.mark.timeout(240)
def test_a_cut_shorter_than_agreed_costs_time_and_not_the_step(
    reference: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        configs = configs_of(LONG, tmp_path)
        rerouted, proxies = through_proxies(configs, stack)
        listen = configs[0].coordinator.endpoint
        consortium = stack.enter_context(Consortium(rerouted, coordinator_listen=listen))
        consortium.start()
        for number in (2, 5, 8):
            consortium.round(number)
            for proxy in proxies:
                proxy.cut()
            time.sleep(0.8)  # a quarter of the silence that is agreed
            for proxy in proxies:
                proxy.heal()
        consortium.finish(120, restart=False)
        assert all("leaving view" not in node.log for node in consortium.nodes)
        assert_same_bits(stored_of(rerouted, LONG.rounds), reference)
