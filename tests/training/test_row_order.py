"""In which order rows travel: it follows from the secret alone, and says nothing of positions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tests.training.small import architecture, run_steps, small_configs
from torch import Tensor

from pcmoe_node.config import NodeConfig
from pcmoe_node.exchange.base import Header, Kind, Message
from pcmoe_node.moe import RemoteExperts
from pcmoe_node.step import Participant

MESSAGES = 1000
CHANCE = 4.0
"""Standard deviations: beyond them nobody would call it chance."""
Key = tuple[int, int, int, int, int]
"""Owner, host, step, micro-batch, layer."""


@dataclass
class Watched:
    """What passed, and which hidden states it was made of."""

    states: dict[tuple[int, int, int, int], Tensor] = field(default_factory=dict)
    """By owner, step, micro-batch and layer: [T, H], in the order of positions."""
    messages: dict[Key, Tensor] = field(default_factory=dict)
    """The rows of each FORWARD, as they were in the message."""

    def positions(self, key: Key) -> Tensor:
        """The position of each row of a message; rows that look like another one are left out."""
        owner, _, *where = key
        states_TH = self.states[(owner, *where)]  # type: ignore[index]
        found: dict[bytes, list[int]] = {}
        for position, row in enumerate(states_TH):
            found.setdefault(row.numpy().tobytes(), []).append(position)
        known = [found[row.numpy().tobytes()] for row in self.messages[key]]
        return torch.tensor([places[0] for places in known if len(places) == 1])


def watched(configs: list[NodeConfig], steps: int, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Let nodes train, and watch."""
    seen, hidden = Watched(), 16
    dispatch = RemoteExperts.dispatch
    owners: dict[int, int] = {}

    def dispatched(self: RemoteExperts, micro_batch: object, x_TH: Tensor, *given: object) -> object:
        where = (owners[id(self.owner)], micro_batch.step, micro_batch.number, self.layer)  # type: ignore[attr-defined]
        seen.states[where] = x_TH.clone()
        return dispatch(self, micro_batch, x_TH, *given)  # type: ignore[arg-type]

    def hook(sender: int, receiver: int, message: Message, deliver: Callable[[], None]) -> None:
        header: Header = message.header
        if header.kind is Kind.FORWARD and header.rows > 0:
            assert message.payload is not None
            rows = torch.frombuffer(bytearray(message.payload.view), dtype=torch.float32)
            key = (sender, receiver, header.step, header.micro_batch, header.layer)
            seen.messages[key] = rows[: header.rows * hidden].view(header.rows, hidden).clone()
        deliver()

    def prepare(index: int, node: Participant) -> None:
        owners[id(node.owner)] = index

    monkeypatch.setattr(RemoteExperts, "dispatch", dispatched)
    run_steps(configs, steps, hook=hook, prepare=prepare)
    return seen


def rank_correlation(positions: Tensor) -> float:
    """Spearman's, between the order of rows and their positions."""
    n = positions.shape[0]
    ranks = positions.argsort().argsort().double()
    return float(1 - 6 * (ranks - torch.arange(n)).square().sum() / (n * (n * n - 1)))


def test_the_order_of_rows_says_nothing_of_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a thousand messages: neither on average (a tendency) nor in its spread (now one way, now the other)."""
    training = {"sequences_per_micro_batch": 2, "sequence_length": 24, "micro_batches_per_step": 2}
    configs = small_configs(
        tmp_path,
        3,
        architecture("olmoe"),
        training={**training, "steps_per_round": 30},
        quota={"rows_per_message": 48},
    )
    seen = watched(configs, 30, monkeypatch)
    positions = [each for key in seen.messages if (each := seen.positions(key)).shape[0] >= 8]
    assert len(positions) >= MESSAGES
    scores = torch.tensor([rank_correlation(each) * (each.shape[0] - 1) ** 0.5 for each in positions])
    count = len(scores)
    assert abs(float(scores.mean())) * count**0.5 < CHANCE
    # A score has variance 1, and its square one of at most 2.
    assert abs(float(scores.square().mean()) - 1) * (count / 2) ** 0.5 < CHANCE


def test_a_planted_order_is_found_by_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: rows in the order of positions have a correlation of 1."""

    def plain(_secret: bytes, _purpose: str, _numbers: tuple[int, ...], length: int) -> Tensor:
        return torch.arange(length)

    monkeypatch.setattr("pcmoe_node.moe.secret_order", plain)
    seen = watched(small_configs(tmp_path, 2, architecture("olmoe")), 1, monkeypatch)
    orders = [each for key in seen.messages if (each := seen.positions(key)).shape[0] >= 8]
    assert orders and all(rank_correlation(each) == 1 for each in orders)


def orders(folder: Path, monkeypatch: pytest.MonkeyPatch, *, seed: int, secret: int) -> dict[Key, list[int]]:
    """The position of every row of every message of a step."""
    configs = [
        config.model_copy(update={"model": config.model.model_copy(update={"seed": seed})})
        for config in small_configs(folder, 2, architecture("olmoe"))
    ]
    for index in range(2):
        (folder / f"secret-{index}").write_text(bytes([secret + index] * 32).hex())
    with monkeypatch.context() as patched:
        seen = watched(configs, 1, patched)
    return {key: seen.positions(key).tolist() for key in seen.messages}


def test_the_order_changes_with_the_secret_and_not_with_the_public_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = orders(tmp_path / "first", monkeypatch, seed=7, secret=1)
    assert len(first) == 6 and all(len(order) > 4 for order in first.values())
    assert orders(tmp_path / "seed", monkeypatch, seed=8, secret=1) == first
    other = orders(tmp_path / "secret", monkeypatch, seed=7, secret=100)
    assert [key for key in first if other.get(key) == first[key]] == []
