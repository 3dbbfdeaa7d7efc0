"""A node between two views, in one process: what it keeps, what it takes back, and what it does not believe."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.exchange.rigs import together
from tests.training.runs import QWEN3_MOE, Case, assert_same_bits, configs_of, rounds_of, run_local, stored_of

import pcmoe_node.rounds as rounds
import pcmoe_node.views as views
from pcmoe_node.__main__ import run_node
from pcmoe_node.checkpoint import Checkpoints
from pcmoe_node.config import NodeConfig
from pcmoe_node.coordination.table import LocalTable
from pcmoe_node.errors import PeerLostError, ProtocolError
from pcmoe_node.exchange.base import Header, Kind, Message
from pcmoe_node.exchange.local import LocalNetwork
from pcmoe_node.participant import assemble

CASE = Case(
    n=2,
    deterministic=True,
    rounds=3,
    steps_per_round=3,
    architecture=dict(QWEN3_MOE),
    overrides={"transport": {"on_peer_loss": "Wait"}},
)
Happening = Callable[[LocalNetwork], None]


def run_with(configs: list[NodeConfig], step: int, happening: Happening) -> LocalTable:
    """Run all nodes; once, when berlin says STEP_END of a step, something happens in its view's network."""
    happened: list[int] = []

    def hook(sender: int, _receiver: int, message: Message, deliver: Callable[[], None]) -> None:
        header = message.header
        if not happened and (sender, header.kind, header.step) == (1, Kind.STEP_END, step):
            happened.append(step)
            happening(table._networks[max(table._networks)])
        deliver()

    table = LocalTable(configs, hook)
    together([partial(run_node, config, table.place(i)) for i, config in enumerate(configs)])
    assert happened
    return table


def lose(network: LocalNetwork) -> None:
    """Amsterdam believes that berlin is lost."""
    network.transport(0).interrupt(PeerLostError("planted"))


@pytest.mark.parametrize(("step", "loaded_anew"), [(1, 2), (4, 0), (8, 0)])
def test_a_view_that_is_lost_leaves_no_trace_in_the_weights_and_loads_only_what_it_must(
    step: int, loaded_anew: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, disturbed = configs_of(CASE, tmp_path / "calm"), configs_of(CASE, tmp_path / "disturbed")
    run_local(calm)
    anew: list[str] = []

    def counted(config: NodeConfig, secret: bytes) -> Any:
        anew.append(config.participant)
        return assemble(config, secret)

    monkeypatch.setattr(views, "assemble", counted)
    table = run_with(disturbed, step, lose)
    assert table.coordinator.view == 2 or table.coordinator.finished == CASE.rounds
    assert len(anew) == loaded_anew, "only the very beginning is in no round"
    assert_same_bits(stored_of(disturbed, CASE.rounds), stored_of(calm, CASE.rounds))
    lines = rounds_of(disturbed[0])
    assert [line["round"] for line in lines if line["round"] == CASE.rounds] == [CASE.rounds], (
        "each round is told"
    )
    for config in disturbed:
        membership = Checkpoints(Path(config.checkpoint_directory), 2).membership
        assert (membership.view, membership.committed) == (2, CASE.rounds)


def test_a_peer_that_says_it_needs_nobody_in_the_middle_of_a_run_ends_it(tmp_path: Path) -> None:
    def early(network: LocalNetwork) -> None:
        network.transport(0).deliver(1, Message(Header(kind=Kind.DONE, step=4)))

    with pytest.raises(ProtocolError, match="sent DONE of step 4: must be the last, 9"):
        run_with(configs_of(CASE, tmp_path), 4, early)


def test_what_was_exchanged_is_counted_on_over_the_views_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, list[int]] = {}
    real = rounds._progress

    def noted(run: rounds.Run) -> None:
        real(run)
        sent = sum(traffic.bytes_sent for traffic in run.state.traffic.values())
        shown.setdefault(run.state.participant, []).append(sent)

    monkeypatch.setattr(rounds, "_progress", noted)
    run_with(configs_of(CASE, tmp_path), 4, lose)
    for counts in shown.values():
        assert counts == sorted(counts) and counts[0] > 0
