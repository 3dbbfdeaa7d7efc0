"""With `deterministic` the same inputs give the same bits: run to run, over either exchange, stopped or not."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.exchange.rigs import changed, coordinating
from tests.training.runs import (
    QWEN3_MOE,
    Case,
    assert_same_bits,
    configs_of,
    node_log,
    rounds_of,
    run_local,
    run_processes,
    run_tls_threads,
    start_process,
    stored_of,
)
from torch import Tensor

from pcmoe_node.__main__ import run_node
from pcmoe_node.config import NodeConfig
from pcmoe_node.coordination.table import LocalTable
from pcmoe_node.host import Deferred, Key

CASE = Case(
    n=3,
    deterministic=True,
    rounds=4,
    steps_per_round=3,
    micro_batches=3,
    in_flight=2,
    auxiliary=0.01,
    architecture=dict(QWEN3_MOE),
)


def stored(configs: list[NodeConfig]) -> list[dict[str, Tensor]]:
    """Everything of the last stored round: weights, masters and moments."""
    return stored_of(configs, CASE.rounds)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    torch.set_num_threads(1)  # before the function-scoped fixture does
    configs = configs_of(CASE, tmp_path_factory.mktemp("reference"))
    run_local(configs)
    return stored(configs)


def test_a_second_run_gives_the_same_bits(reference: list[dict[str, Tensor]], tmp_path: Path) -> None:
    configs = configs_of(CASE, tmp_path)
    run_local(configs)
    assert_same_bits(stored(configs), reference)


def test_tls_gives_the_same_bits_as_local(reference: list[dict[str, Tensor]], tmp_path: Path) -> None:
    configs = configs_of(CASE, tmp_path)
    run_tls_threads(configs)
    assert_same_bits(stored(configs), reference)


def test_hosts_that_recompute_give_the_same_bits_as_hosts_that_keep(
    reference: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    configs = [changed(config, quota={"activation_bytes": 0}) for config in configs_of(CASE, tmp_path)]
    run_local(configs)
    assert_same_bits(stored(configs), reference)


@pytest.mark.parametrize("limit", [0, 1000])
def test_weight_gradients_added_at_once_or_late_give_the_same_bits(
    limit: int, reference: list[dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deferred, "crowded", property(lambda self: len(self._arrived) > limit))
    configs = configs_of(CASE, tmp_path)
    run_local(configs)
    assert_same_bits(stored(configs), reference)


def test_weight_gradients_never_pile_up_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they are computed from is most of a small model's memory if all of a step's wait for the vote."""
    case = replace(CASE, deterministic=False, rounds=1, micro_batches=8)
    waiting: list[int] = []
    put = Deferred.put

    def counting(self: Deferred, key: Key, addition: Callable[[], None]) -> None:
        put(self, key, addition)
        waiting.append(len(self._arrived))

    monkeypatch.setattr(Deferred, "put", counting)
    run_local(configs_of(case, tmp_path))
    assert len(waiting) > 100
    assert max(waiting) <= case.n * case.in_flight + 1


def test_one_that_was_killed_before_it_stored_the_last_round_finds_the_others_again(
    reference: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    configs = configs_of(CASE, tmp_path)
    run_local(configs)
    for config in configs:  # all were killed before the last round was committed
        folder = Path(config.checkpoint_directory)
        (folder / "membership.json").write_text(json.dumps({"view": 1, "committed": CASE.rounds - 1}))
        # What an earlier, shorter run left says nothing.
        (folder / "finished").write_text(str(CASE.rounds - 1))
    shutil.rmtree(Path(configs[1].checkpoint_directory) / f"round-{CASE.rounds:06d}")
    run_local(configs)
    assert_same_bits(stored(configs), reference)


def test_a_finished_participant_needs_nobody(tmp_path: Path) -> None:
    configs = configs_of(CASE, tmp_path)
    run_local(configs)
    run_node(configs[0], LocalTable(configs).place(0))


def test_processes_stopped_and_resumed_give_the_same_bits(
    reference: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    configs = configs_of(CASE, tmp_path)
    with coordinating(configs):
        processes = [start_process(config) for config in configs]
        try:
            wait_for_round(configs[1], 2)  # so everybody has stored round 1
            for process in processes:
                process.send_signal(signal.SIGTERM)
            codes = [process.wait(20) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait(10)
    assert set(codes) <= {75, 143}, codes
    # One is a round behind, as a crash before the rename leaves it: everybody goes back to the common one.
    for late in Path(configs[2].checkpoint_directory).glob("round-*"):
        if late.name != "round-000001":
            shutil.rmtree(late)
    (Path(configs[2].checkpoint_directory) / "round-000002.tmp").mkdir()
    assert run_processes(configs) == [0] * CASE.n, "\n".join(node_log(config)[-1500:] for config in configs)
    assert "taking up round 1 again" in node_log(configs[0])
    assert_same_bits(stored(configs), reference)


def wait_for_round(config: NodeConfig, number: int, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    journal = Path(config.log_directory) / "rounds.jsonl"
    while time.monotonic() < deadline:
        if journal.exists() and any(record["round"] >= number for record in rounds_of(config)):
            return
        time.sleep(0.02)
    raise TimeoutError(f"round {number} was not stored within {timeout} s: {node_log(config)[-500:]}")
