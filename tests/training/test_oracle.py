"""N participants compute what one process would that holds all N backbones and the shared experts.

Per tensor ‖Δ‖ ≤ 1e-6·‖p‖ and ≤ 1e-4·‖p − p₀‖, losses within 1e-6 relative, float32, on seeds whose routers are
decided by more than 1e-5 everywhere. Element by element more can't be asked: AdamW amplifies rounding.
"""

import itertools
from pathlib import Path

import pytest
import torch
from tests.training.oracle import Oracle
from tests.training.runs import (
    QWEN3_MOE,
    Case,
    configs_of,
    final_weights,
    node_log,
    oracle_of,
    rounds_of,
    run_local,
    run_processes,
)
from torch import Tensor

from pcmoe_node.config import NodeConfig

Weights = dict[str, Tensor]


def steps_of(case: Case) -> int:
    return case.rounds * case.steps_per_round


def assert_equal_to_oracle(case: Case, configs: list[NodeConfig], oracle: Oracle) -> None:
    """Run the oracle and hold the nodes' stored weights and losses to it."""
    first = [_copy(backbone) for backbone in oracle.backbones], _copy(oracle.shared)
    losses = [oracle.step(step) for step in range(steps_of(case))]
    assert oracle.smallest_gap > 1e-5, f"routing is a matter of luck on this seed: {oracle.smallest_gap:.1e}"
    assert oracle.decisions <= 10_000

    backbones, shared = final_weights(configs)
    faults = _faults("experts", shared, oracle.shared, first[1])
    for member in range(case.n):
        name = configs[member].participant
        faults += _faults(name, backbones[member], oracle.backbones[member], first[0][member])
        faults += _loss_faults(name, configs[member], member, losses)
    assert not faults, "\n".join(faults)


def _loss_faults(
    name: str, config: NodeConfig, member: int, losses: list[dict[int, tuple[float, int]]]
) -> list[str]:
    """Each round's training loss, as the node's journal says it, beside the oracle's."""
    per_round = config.training.steps_per_round
    faults = []
    for record in rounds_of(config)[1:]:
        mine = [
            step[member] for step in losses[record["step"] - per_round : record["step"]] if member in step
        ]
        expected = sum(loss for loss, _ in mine) / sum(tokens for _, tokens in mine)
        if not abs(record["trainLoss"] - expected) <= 1e-6 * abs(expected):
            faults.append(
                f"{name}: loss of round {record['round']} is {record['trainLoss']}, oracle {expected}"
            )
    assert record["round"] == config.training.rounds
    return faults


def _copy(parameters: dict[str, torch.nn.Parameter]) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _faults(who: str, found: Weights, expected: dict[str, torch.nn.Parameter], first: Weights) -> list[str]:
    assert set(found) == set(expected), f"{who}: {sorted(set(found) ^ set(expected))}"
    faults = []
    for name, weight in found.items():
        oracle = expected[name].detach()
        gap = torch.linalg.vector_norm(weight - oracle)
        to_weight = float(gap / torch.linalg.vector_norm(oracle))
        to_change = float(gap / torch.linalg.vector_norm(oracle - first[name]))
        if not (to_weight <= 1e-6 and to_change <= 1e-4):
            faults.append(f"{who} {name}: {to_weight:.1e} of the weight, {to_change:.1e} of its change")
    return faults


SPREAD = [
    Case(n=4, placement="CapacityWeighted", deterministic=True, length=12),
    Case(n=3, schedule="Sequential", local_at_end=0, auxiliary=0.01, steps_per_round=9, deterministic=True),
    Case(n=2, placement="Pinned", checkpointing=True, auxiliary=0.01, deterministic=True),
    Case(n=1, local_at_end=0, deterministic=True),
]
"""Every value of every setting at least once, in processes of their own, over mutual TLS."""


@pytest.mark.parametrize("case", SPREAD, ids=str)
def test_separate_processes_over_tls_equal_the_oracle(case: Case, tmp_path: Path) -> None:
    configs = configs_of(case, tmp_path)
    assert run_processes(configs) == [0] * case.n, "\n".join(node_log(config)[-2000:] for config in configs)
    assert_equal_to_oracle(case, configs, oracle_of(case, configs))


CROSS = [
    Case(
        n=n,
        schedule=schedule,
        placement=placement,
        local_at_end=local,
        auxiliary=auxiliary,
        checkpointing=checkpointing,
        deterministic=True,
        rounds=1,
        steps_per_round=12 // n * n if schedule == "Sequential" else 4,
        length=8,
        learning_rate=5e-4,
        epsilon=1e-5,
        architecture=dict(QWEN3_MOE),
    )
    for n, schedule, placement, local, auxiliary, checkpointing in itertools.product(
        (1, 2, 3, 4),
        ("Concurrent", "Sequential"),
        ("RoundRobin", "CapacityWeighted", "Pinned"),
        (0, 1),
        (0.0, 0.01),
        (False, True),
    )
]


@pytest.mark.parametrize("case", CROSS, ids=str)
def test_every_combination_in_one_process_equals_the_oracle(case: Case, tmp_path: Path) -> None:
    configs = configs_of(case, tmp_path)
    run_local(configs)
    assert_equal_to_oracle(case, configs, oracle_of(case, configs))
