"""The measurement sees what a host is sent, reads text where text is to be read, and tells nobody any of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.runs import Case, configs_of, run_local
from tests.training.small import architecture, run_steps, secret_of, small_configs
from torch import Tensor

from pcmoe_node.config import NodeConfig
from pcmoe_node.data import open_corpus
from pcmoe_node.errors import ConfigError, DataError, DivergedError
from pcmoe_node.exchange.base import Kind, Message
from pcmoe_node.leak.__main__ import main
from pcmoe_node.leak.measure import (
    CLOSED_FORM,
    CURRENT,
    GRADIENTS,
    NEXT,
    PROBE,
    START,
    Measurement,
    Reading,
    measure,
    spread_layers,
)
from pcmoe_node.leak.page import CAVEAT, as_text
from pcmoe_node.leak.record import Layer, Recorder
from pcmoe_node.leak.sample import Marked, draw
from pcmoe_node.leak.subject import make_subject
from pcmoe_node.model import FAMILIES
from pcmoe_node.participant import DTYPE
from pcmoe_node.payloads import TORCH_DTYPE
from pcmoe_node.tokenizer import ByteLevel

CPU = torch.device("cpu")
Rows = dict[tuple[Kind, int], Tensor]


def rows_on_the_wire(configs: list[NodeConfig], hidden: int) -> Rows:
    """What the first participant sends the second in its first step, by kind and layer."""
    found: Rows = {}

    def hook(sender: int, receiver: int, message: Message, deliver: Callable[[], None]) -> None:
        header = message.header
        if (sender, receiver) == (0, 1) and header.kind in (Kind.FORWARD, Kind.BACKWARD) and header.rows:
            assert message.payload is not None
            flat = torch.frombuffer(
                message.payload.view, dtype=TORCH_DTYPE[header.dtype], count=header.rows * hidden
            )
            found[header.kind, header.layer] = flat.view(-1, hidden).float().clone()
        deliver()

    run_steps(configs, 1, hook=hook)
    return found


def furthest(rows_RH: Tensor, others_RH: Tensor) -> float:
    """How far the row that is furthest from all of the others is from the nearest, in their mean length."""
    size = float(others_RH.norm(dim=1).mean())
    return float(torch.cdist(rows_RH.double(), others_RH.double()).min(1).values.max()) / size


def recorded_of(config: NodeConfig) -> dict[int, Layer]:
    """What the second participant is sent of the first one's first micro-batch, by the recorder."""
    corpus = open_corpus(config.dataset, ByteLevel(), secret_of(config), config.training.sequence_length)
    batch = corpus.training_batch(0, config.training.sequences_per_micro_batch)
    subject = make_subject(config, CPU)
    recorder = Recorder(
        model=subject.model,
        layers={
            layer: (subject.experts[layer], hosts) for layer, (_, hosts) in spread_layers(config).items()
        },
        host=1,
        wire=DTYPE[config.transport.wire_dtype],
        auxiliary=subject.auxiliary if config.training.auxiliary_loss_coefficient else None,
    )
    recorded = recorder.record([Marked(batch, torch.zeros_like(batch.ids_BS))])
    for rows in recorded.values():
        assert torch.equal(rows.received.current_R, batch.ids_BS.flatten()[rows.received.token_R])
    return recorded


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_recorded_rows_are_those_that_a_real_step_sends(tmp_path: Path, family: str) -> None:
    fields = architecture(family)
    configs = small_configs(tmp_path, 2, fields, training={"auxiliary_loss_coefficient": 0.02})
    sent = rows_on_the_wire(configs, int(fields["hidden_size"]))
    recorded = recorded_of(configs[0])
    assert {layer for _, layer in sent} == set(recorded)
    for layer, rows in recorded.items():
        for kind, found_RH in (
            (Kind.FORWARD, rows.received.hidden_RH),
            (Kind.BACKWARD, rows.received.gradients_RH),
        ):
            assert found_RH.shape == sent[kind, layer].shape
            assert furthest(found_RH, sent[kind, layer]) < 1e-4
            assert furthest(sent[kind, layer], found_RH) < 1e-4


def test_rows_are_rounded_as_the_wire_rounds_them(tmp_path: Path) -> None:
    fields = architecture("olmoe")
    configs = small_configs(tmp_path, 2, fields, transport={"wire_dtype": "bfloat16"})
    sent = rows_on_the_wire(configs, int(fields["hidden_size"]))
    recorded = recorded_of(configs[0])
    assert furthest(recorded[0].received.hidden_RH, sent[Kind.FORWARD, 0]) == 0
    for rows in recorded.values():
        for found_RH in (rows.received.hidden_RH, rows.received.gradients_RH):
            assert torch.equal(found_RH, found_RH.bfloat16().float())


# ---- a trained consortium


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[NodeConfig]:
    """Two participants after 40 steps, all layers shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    case = Case(local_at_end=0, length=32, learning_rate=1e-3, steps_per_round=20, sequences=2, auxiliary=0.1)
    configs = configs_of(case, tmp_path_factory.mktemp("trained"))
    run_local(configs)
    torch.set_num_threads(before)
    return configs


@pytest.fixture(scope="module")
def measured(trained: list[NodeConfig]) -> list[Measurement]:
    return measure(trained[0], documents=16, sequences=64)


def reading(found: Measurement, layer: int, attack: str, token: str, taught: str | None = START) -> Reading:
    """One attack's figures."""
    signal = GRADIENTS if token == NEXT else "hidden states"
    (only,) = [
        r
        for r in found.readings
        if (r.layer, r.attack, r.signal, r.token, r.taught) == (layer, attack, signal, token, taught)
    ]
    return only


def test_the_start_and_the_newest_round_are_measured(measured: list[Measurement]) -> None:
    assert [found.weights for found in measured] == [START, "round 2"]
    assert {found.host for found in measured} == {"berlin"}
    assert {reading.taught for reading in measured[1].readings} == {START, "round 2", None}


def test_the_last_layers_gradients_give_the_next_token_away_in_closed_form(
    measured: list[Measurement],
) -> None:
    for found in measured:
        last = reading(found, 2, CLOSED_FORM, NEXT, None)
        assert last.read.low > 0.8 > last.most_frequent.high


def test_a_layer_at_home_at_the_end_gives_less_away_but_more_than_guessing(
    measured: list[Measurement],
) -> None:
    for found in measured:
        last, below = (reading(found, layer, CLOSED_FORM, NEXT, None) for layer in (2, 1))
        assert last.sent_if_at_end == 0 and below.sent_if_at_end == 1
        assert last.read.value > below.read.value
        assert below.read.low > below.most_frequent.high


def test_hidden_states_give_their_own_token_away(measured: list[Measurement]) -> None:
    for found in measured:
        for layer in range(3):
            own = reading(found, layer, PROBE, CURRENT, found.weights)
            assert own.read.low > 0.8 > own.most_frequent.high


def test_the_rounds_own_weights_are_measured_not_the_starts(measured: list[Measurement]) -> None:
    start, now = (reading(found, 2, PROBE, NEXT).read for found in measured)
    assert start != now


def test_one_host_sees_most_tokens_in_some_layer(measured: list[Measurement]) -> None:
    for found in measured:
        assert max(r.rows_share for r in found.readings) <= found.tokens_share <= 1


def test_a_layer_that_stays_at_home_is_measured_as_if_it_left(trained: list[NodeConfig]) -> None:
    kept = trained[0].placement[-1].model_copy(update={"hosts": None})
    config = trained[0].model_copy(
        update={
            "placement": (*trained[0].placement[:-1], kept),
            "checkpoint_directory": str(Path(trained[0].checkpoint_directory) / "none"),
        }
    )
    (found,) = measure(config, documents=16, sequences=64)
    assert found.at_end == 1
    text = as_text("amsterdam", [found])
    assert "if atEnd 0" in text and "atEnd 0: the last layer sent is 2" in text
    assert "atEnd 1: the last layer sent is 1" in text


# ---- the command


def run_command(config: NodeConfig, folder: Path, *options: str) -> int:
    path = folder / "config.json"
    path.write_text(config.model_dump_json())
    return main(["--config", str(path), "--documents", "8", "--sequences", "32", *options])


def test_the_command_prints_and_writes_figures_and_never_text(
    trained: list[NodeConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "leak.json"
    before = sorted(Path(trained[0].checkpoint_directory).rglob("*"))
    assert run_command(trained[0], tmp_path, "--output", str(output)) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(CAVEAT + "\n")
    assert "most frequent" in printed and "upper bound" in printed
    written = json.loads(output.read_text())
    assert written["caveat"] == CAVEAT and len(written["measurements"]) == 2
    numbers = {type(value) for value in leaves(written["measurements"])}
    assert numbers <= {int, float, str, type(None)}
    assert set(texts(written["measurements"])) <= {
        START,
        "round 2",
        "berlin",
        PROBE,
        CLOSED_FORM,
        "hidden states",
        GRADIENTS,
        CURRENT,
        NEXT,
    }
    assert sorted(Path(trained[0].checkpoint_directory).rglob("*")) == before, "the run's folder is only read"


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in leaves(part)]
    if isinstance(value, list):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]


def texts(value: Any) -> list[str]:
    return [leaf for leaf in leaves(value) if isinstance(leaf, str)]


def test_the_summary_leaves_the_layers_out(
    trained: list[NodeConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(trained[0], tmp_path, "--summary") == 0
    printed = capsys.readouterr().out
    assert "Own token" in printed and CAVEAT in printed and "unigram" not in printed


def test_a_host_that_is_not_there_is_refused_by_name(
    trained: list[NodeConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(trained[0], tmp_path, "--host", "atlantis") == ConfigError.exit_code
    assert "'atlantis' must be another participant that hosts experts: berlin" in capsys.readouterr().err


def test_too_few_documents_are_refused_without_quoting_one(
    trained: list[NodeConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few.jsonl").write_text('{"text": "a secret phrase"}\n')
    dataset = trained[0].dataset.model_copy(update={"path": str(tmp_path / "few.jsonl")})
    config = trained[0].model_copy(update={"dataset": dataset})
    assert run_command(config, tmp_path) == DataError.exit_code
    said = capsys.readouterr().err
    assert "holds 1 documents, at least 4 are needed" in said and "secret phrase" not in said


def test_a_round_of_another_consortium_is_refused(
    trained: list[NodeConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = trained[0].model_copy(update={"checkpoint_directory": trained[1].checkpoint_directory})
    assert run_command(config, tmp_path) == ConfigError.exit_code
    assert "belongs to another consortium, participant, model or placement" in capsys.readouterr().err


def test_a_consortium_that_shares_nothing_has_nothing_to_measure(trained: list[NodeConfig]) -> None:
    alone = tuple(place.model_copy(update={"hosts": None}) for place in trained[0].placement)
    with pytest.raises(ConfigError, match="no layer's experts are shared"):
        measure(trained[0].model_copy(update={"placement": alone}), documents=8, sequences=8)


def test_a_model_whose_numbers_overflow_is_not_called_safe(
    trained: list[NodeConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained[0].model
    broken = tmp_path / "model"
    shutil.copytree(str(model.checkpoint), broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.inf
    save_file(tensors, broken / "model.safetensors")
    changed = model.model_copy(update={"checkpoint": str(broken), "fingerprint": None})
    assert run_command(trained[0].model_copy(update={"model": changed}), tmp_path) == DivergedError.exit_code
    assert "not finite" in capsys.readouterr().err


def test_a_tokenizer_that_fails_is_told_without_the_record(trained: list[NodeConfig]) -> None:
    class Broken(ByteLevel):
        def encode(self, text: str) -> list[int]:
            raise ValueError(text)

    with pytest.raises(DataError, match=r"record \d+: the tokenizer failed \(ValueError\)$") as told:
        draw(trained[0], Broken(), 8, 8)
    assert told.value.__context__ is None


def test_documents_are_drawn_from_all_over_the_dataset(trained: list[NodeConfig]) -> None:
    batches = draw(trained[0], ByteLevel(), 5, 20)
    documents = torch.cat([marked.document_BS.flatten() for marked in batches])
    assert set(documents.tolist()) - {-1} == set(range(5))
    for marked in batches:
        behind = marked.document_BS < 0
        assert (marked.batch.labels_BS[behind] == -100).all()
        for row in range(len(marked.document_BS)):
            assert len(set(marked.document_BS[row].tolist()) - {-1}) == 1
