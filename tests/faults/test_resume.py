"""Resume equals never stopped: whoever is killed, wherever, the final weights are the same bits."""

from pathlib import Path

import pytest
import torch
from tests.faults.consortium import Consortium, running
from tests.training.runs import QWEN3_MOE, Case, assert_same_bits, configs_of, run_local, stored_of
from torch import Tensor

CASE = Case(
    n=3,
    deterministic=True,
    rounds=4,
    steps_per_round=3,
    micro_batches=2,
    in_flight=2,
    architecture=dict(QWEN3_MOE),
    overrides={
        "transport": {
            "on_peer_loss": "Wait",
            "peer_timeout_seconds": 3,
            "progress_timeout_seconds": 60,
            "rejoin_timeout_seconds": 120,
        }
    },
)
NAMES = ("amsterdam", "berlin", "lyon")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What the run ends in that nobody disturbs."""
    torch.set_num_threads(1)
    configs = configs_of(CASE, tmp_path_factory.mktemp("reference"))
    run_local(configs)
    return stored_of(configs, CASE.rounds)


def killed(consortium: Consortium) -> None:
    """Every planted kill has happened, and nothing else went wrong."""
    for node in consortium.nodes:
        assert set(node.codes) <= {137}, (node.name, node.codes)
        assert "Traceback" not in node.log
    assert any(node.codes for node in consortium.nodes)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "faults",
    [
        {"amsterdam": "load=kill", "berlin": "forward@9=kill", "lyon": "fsync@4=kill"},
        {"amsterdam": "backward@11=kill", "berlin": "vote@8=kill", "lyon": "rename@3=kill"},
        {"amsterdam": "commit@5=kill", "berlin": "evaluation@3=kill", "lyon": "stored@3=kill"},
        {"amsterdam": "apply@11=kill", "berlin": "entered=kill", "lyon": "leave=kill"},
    ],
    ids=lambda faults: " ".join(fault.partition("@")[0].partition("=")[0] for fault in faults.values()),
)
def test_killed_in_any_phase_of_a_round_the_final_weights_are_the_same_bits(
    faults: dict[str, str], reference: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    with running(configs_of(CASE, tmp_path), **faults) as consortium:
        consortium.finish(200)
        killed(consortium)
        assert_same_bits(stored_of(consortium.configs, CASE.rounds), reference)
