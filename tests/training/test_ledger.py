"""What a participant writes down of what it hands to its peers: counts, tokens, documents, and who may read it."""

import json
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.exchange.rigs import together
from tests.exposed import lines
from tests.training.runs import QWEN3_MOE, Case, configs_of, rounds_of, run_local
from tests.training.small import architecture, outcomes, small_configs

from pcmoe_node.__main__ import run_node
from pcmoe_node.config import NodeConfig
from pcmoe_node.coordination.table import LocalTable
from pcmoe_node.errors import PeerLostError, StorageError
from pcmoe_node.exchange.base import Header, Kind, Message, WireDtype
from pcmoe_node.journal import Journal
from pcmoe_node.ledger import Ledger
from pcmoe_node.ledger_book import FILE
from pcmoe_node.packing import NO_DOCUMENT, NO_LABEL, Batch
from pcmoe_operator.report.exposure import exposure_in

LYON, PORTO = 1, 2


def batch(documents: list[list[int]], unlabelled: tuple[int, ...] = ()) -> Batch:
    """Sequences whose tokens are of these documents; every document's part is one piece."""
    documents_BS = torch.tensor(documents)
    positions = [[row[:place].count(document) for place, document in enumerate(row)] for row in documents]
    labels_BS = torch.where(documents_BS == NO_DOCUMENT, NO_LABEL, 7)
    labels_BS.view(-1)[list(unlabelled)] = NO_LABEL
    return Batch(
        ids_BS=torch.zeros_like(documents_BS),
        labels_BS=labels_BS,
        positions_BS=torch.tensor(positions),
        documents_BS=documents_BS,
    )


def test_a_token_that_a_peer_sees_at_many_layers_is_seen_once() -> None:
    ledger = Ledger()
    exposed = ledger.open(batch([[4, 4, 4, 9]]), held_out=False)
    exposed.states(LYON, torch.tensor([0, 2]))
    exposed.states(LYON, torch.tensor([2, 3]))
    exposed.states(PORTO, torch.tensor([1]))
    exposed.close()
    entries = ledger.take()
    assert (entries.own.tokens, entries.seen[LYON].tokens, entries.seen[PORTO].tokens) == (4, 3, 1)


def test_only_gradients_at_positions_that_predict_something_show_a_target() -> None:
    ledger = Ledger()
    exposed = ledger.open(batch([[4, 4, 4, 9]], unlabelled=(2,)), held_out=False)
    exposed.gradients(LYON, torch.tensor([1, 2]))
    exposed.close()
    entries = ledger.take()
    assert (entries.own.targets, entries.seen[LYON].targets) == (3, 1)


def test_a_document_is_counted_once_for_each_piece_of_it_that_is_seen() -> None:
    ledger = Ledger()
    exposed = ledger.open(batch([[4, 4, 9, 9], [9, 9, 5, 5]]), held_out=False)
    exposed.states(LYON, torch.tensor([0, 1, 3, 4, 5]))
    exposed.close()
    assert ledger.take().seen[LYON].documents == {4: 1, 9: 2}


def test_filler_is_nobodys_token_and_evaluation_is_counted_apart() -> None:
    ledger = Ledger()
    exposed = ledger.open(batch([[4, 4, NO_DOCUMENT, NO_DOCUMENT]]), held_out=True)
    exposed.states(LYON, torch.tensor([0, 1, 2, 3]))
    exposed.close()
    entries = ledger.take()
    assert (entries.own.held_out, entries.seen[LYON].held_out) == (2, 2)
    assert (entries.own.tokens, entries.seen[LYON].tokens) == (0, 0)
    assert entries.seen[LYON].documents == {4: 1}


def test_a_micro_batch_that_is_cut_off_counts_as_far_as_it_came_and_only_once() -> None:
    ledger = Ledger()
    exposed = ledger.open(batch([[4, 4]]), held_out=False)
    exposed.states(LYON, torch.tensor([1]))
    assert ledger.take().seen[LYON].tokens == 1
    exposed.close()
    assert ledger.take().seen == {}


def test_messages_are_counted_by_peer_layer_and_kind_and_the_smallest_that_is_not_empty_is_kept() -> None:
    ledger = Ledger()
    for rows in (5, 0, 3):
        header = Header(
            kind=Kind.FORWARD,
            layer=2,
            dtype=WireDtype.BFLOAT16,
            rows=rows,
            slots=2 * rows,
            payload_length=rows,
        )
        ledger.sent(LYON, header)
    ledger.sent(LYON, Header(kind=Kind.VOTE, payload_length=9))
    ledger.sent(LYON, Header(kind=Kind.DONE))
    entries = ledger.take()
    sent = entries.sent[LYON, 2, Kind.FORWARD]
    assert (sent.messages, sent.empty, sent.rows, sent.slots, sent.payload, sent.smallest) == (
        3,
        1,
        8,
        16,
        8,
        3,
    )
    assert (entries.control[LYON].messages, entries.control[LYON].bytes) == (1, 81)
    assert ledger.take().sent == {}


def test_nothing_is_shown_where_zeros_travel(tmp_path: Path) -> None:
    """Numbers beyond the bound are replaced by zeros: these leave, and say nothing."""
    configs = small_configs(
        tmp_path, 2, architecture("olmoe", num_hidden_layers=1), transport={"max_abs": 1e-6}
    )
    assert all(outcome is None for outcome in outcomes(configs))
    lines_of = written(configs[0])
    (sums,) = [
        line["peers"]["berlin"] for line in lines_of if line["record"] == "round" and line["round"] == 1
    ]
    assert (sums["tokens"], sums["targets"], sums["documents"]) == (0, 0, {})
    assert sums["layers"]["0"]["FORWARD"]["rows"] > 0


# ---- whole runs


def written(config: NodeConfig) -> list[dict[str, Any]]:
    """The ledger's lines."""
    return list(lines((Path(config.log_directory) / FILE).read_text()))


def bytes_to(line: dict[str, Any], peer: str) -> int:
    """All that a line says was sent to a peer."""
    entry = line["peers"].get(peer)
    if entry is None:
        return 0
    layers = [sent for kinds in entry["layers"].values() for sent in kinds.values()]
    return int(entry["control"]["bytes"]) + sum(sum(sent["bytes"].values()) for sent in layers)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[NodeConfig]:
    """Three nodes, two rounds of three steps."""
    configs = configs_of(Case(n=3, rounds=2, steps_per_round=3), tmp_path_factory.mktemp("run"))
    run_local(configs)
    return configs


def test_a_line_per_round_says_what_the_transport_counted_too(run: list[NodeConfig]) -> None:
    for config in run:
        told = [line for line in written(config) if line["record"] == "round"]
        journal = rounds_of(config)
        assert [line["round"] for line in told] == [line["round"] for line in journal] == [0, 1, 2]
        for mine, counted in zip(told, journal, strict=True):
            for peer, traffic in counted["traffic"].items():
                assert bytes_to(mine, peer) == traffic["bytesSent"]
                asked = [kinds.get(kind) for kinds in mine["peers"][peer]["layers"].values() for kind in OWN]
                assert sum(sent["rows"] for sent in asked if sent) == traffic["hiddenRowsSent"]


OWN = ("FORWARD", "EVALUATE")


def test_a_ledger_begins_with_who_is_there_and_ends_when_the_view_ends(run: list[NodeConfig]) -> None:
    for config in run:
        first, *_, last = written(config)
        assert (first["record"], first["view"], first["after"]) == ("view", 1, 0)
        assert first["agreement"] == config.identity.agreement_digest
        assert first["plan"] == config.identity.plan_digest
        assert set(first["members"]) == {peer.name for peer in config.participants} - {config.participant}
        assert (last["record"], last["because"], last["own"]["tokens"]) == ("rest", None, 0)


def test_only_the_owner_may_read_the_ledger(run: list[NodeConfig]) -> None:
    for config in run:
        mode = (Path(config.log_directory) / FILE).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600


def test_the_ledger_is_no_part_of_what_a_node_answers(run: list[NodeConfig]) -> None:
    for config in run:
        answer = Journal(Path(config.log_directory)).report(config.participant)
        assert b"exposure" not in answer and b"hiddenStates" not in answer and b"documents" not in answer


def test_nobody_is_shown_more_tokens_than_were_read(run: list[NodeConfig]) -> None:
    for config in run:
        exposure = exposure_in(Path(config.log_directory), config.participant)
        assert exposure is not None
        training = config.training
        steps = training.rounds * training.steps_per_round * training.micro_batches_per_step
        assert exposure.tokens == steps * training.sequences_per_micro_batch * training.sequence_length
        for peer in exposure.peers.values():
            assert 0 < peer.tokens <= exposure.tokens
            assert 0 < peer.targets <= exposure.targets
            assert 0 < peer.held_out <= exposure.held_out
            assert 0 < len(peer.documents) <= exposure.documents
            assert peer.smallest is not None and peer.smallest >= 1


def test_a_round_that_is_done_again_has_left_again_and_has_a_line_in_both_views(tmp_path: Path) -> None:
    case = Case(
        n=2,
        rounds=2,
        steps_per_round=3,
        architecture=dict(QWEN3_MOE),
        overrides={"transport": {"on_peer_loss": "Wait"}},
    )
    configs = configs_of(case, tmp_path)
    happened: list[int] = []

    def hook(sender: int, _receiver: int, message: Message, deliver: Callable[[], None]) -> None:
        header = message.header
        if not happened and (sender, header.kind, header.step) == (1, Kind.STEP_END, 4):
            happened.append(header.step)
            table._networks[max(table._networks)].transport(0).interrupt(PeerLostError("planted"))
        deliver()

    table = LocalTable(configs, hook)
    together([partial(run_node, config, table.place(i)) for i, config in enumerate(configs)])
    assert happened
    told = written(configs[0])
    assert [line["record"] for line in told if line["view"] == 1] == ["view", "round", "round", "rest"]
    rest = next(line for line in told if line["record"] == "rest" and line["view"] == 1)
    assert rest["because"] == "PeerLostError"
    assert rest["own"]["tokens"] > 0 and bytes_to(rest, "berlin") > 0
    assert [line["round"] for line in told if line["record"] == "round"] == [0, 1, 2]
    exposure = exposure_in(Path(configs[0].log_directory), "amsterdam")
    assert exposure is not None and exposure.open_views == []
    in_order = 2 * 3 * case.micro_batches * case.sequences * case.length
    assert exposure.tokens == in_order + rest["own"]["tokens"]


def test_a_ledger_that_can_not_be_written_ends_the_run(tmp_path: Path) -> None:
    (config,) = small_configs(tmp_path, 1, architecture("olmoe", num_hidden_layers=1))
    (Path(config.log_directory) / FILE).mkdir(parents=True)
    (error,) = outcomes([config])
    assert isinstance(error, StorageError)
    assert FILE in str(error)


def test_a_line_that_a_killed_process_left_half_written_is_taken_away(tmp_path: Path) -> None:
    (config,) = small_configs(tmp_path, 1, architecture("olmoe", num_hidden_layers=1))
    path = Path(config.log_directory) / FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"record": "view", "view": 0}) + '\n{"rec')
    assert outcomes([config]) == [None]
    assert [line["record"] for line in written(config)] == ["view", "view", "round", "round", "rest"]
