"""A recorded run over mutual TLS: every byte is accounted for, and the ledgers say exactly what was sent."""

import json
import os
import shutil
import ssl
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.training.runs import Case, configs_of, run_tls_threads

from pcmoe_node import step
from pcmoe_node.config import NodeConfig
from pcmoe_node.errors import ConfigError, PeerLostError, ResourceError
from pcmoe_node.exchange.base import Buffer, Kind
from pcmoe_node.exchange.buffers import BufferPool
from pcmoe_node.exchange.layout import REPLIES, REQUESTS
from pcmoe_node.exchange.tls import tap
from pcmoe_node.exchange.wire import HEADER_SIZE
from pcmoe_node.ledger_book import FILE
from pcmoe_node.wiretap.__main__ import figures_of, main
from pcmoe_node.wiretap.account import Account, account_of
from pcmoe_node.wiretap.against import compared, read_ledger
from pcmoe_node.wiretap.tape import Frame, frames_of

POISON = b"\xa5\x5a\xc3POISON\x3c"
TENSORS = (*REQUESTS, *REPLIES)
Poke = Callable[[bytearray], None]


@dataclass
class Recorded:
    """A run that was recorded."""

    folder: Path
    configs: list[NodeConfig]


def poisoned(patched: pytest.MonkeyPatch) -> None:
    """Fill buffers with something that can't come about by chance, when they are given out and when they come back."""
    allocate, release = BufferPool.allocate, Buffer.release

    def fill(view: memoryview) -> None:
        view[:] = (POISON * (len(view) // len(POISON) + 1))[: len(view)]

    def poisoned_allocate(self: BufferPool, size: int) -> Buffer:
        buffer = allocate(self, size)
        fill(buffer.view)
        return buffer

    def poisoned_release(self: Buffer) -> None:
        if self._give_back is not None:
            fill(self.view)
        release(self)

    patched.setattr(BufferPool, "allocate", poisoned_allocate)
    patched.setattr(Buffer, "release", poisoned_release)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Three nodes, two rounds, evaluation included, with poisoned buffers."""
    folder = tmp_path_factory.mktemp("run")
    case = Case(n=3, rounds=2, steps_per_round=3, overrides={"transport": {"wire_dtype": request.param}})
    configs = configs_of(case, folder)
    with pytest.MonkeyPatch.context() as patched:
        poisoned(patched)
        patched.setenv(tap.VARIABLE, str(folder / "tap"))
        try:
            run_tls_threads(configs)
        finally:
            tap.end()
    return Recorded(folder / "tap", configs)


@pytest.fixture
def copied(run: Recorded, tmp_path: Path) -> Path:
    """The recording, to be changed."""
    shutil.copytree(run.folder, tmp_path / "tap")
    return tmp_path / "tap"


def test_every_byte_of_a_whole_run_is_explained(run: Recorded) -> None:
    account = account_of(run.folder)
    assert (account.residue, account.cut_short, account.faults) == (0, 0, [])
    assert account.explained == account.recorded > 10**6
    kinds = {key.kind for key in account.sums}
    expected = {kind.name for kind in (*TENSORS, Kind.STEP_END, Kind.VOTE, Kind.DONE)}
    assert kinds >= expected | {"HELLO", "WELCOME", "REPORT", "NOTICE"}


def test_what_one_sends_is_what_the_other_receives(run: Recorded) -> None:
    account = account_of(run.folder)
    for key, total in account.sums.items():
        if key.kind in {kind.name for kind in TENSORS}:
            (other,) = [
                each
                for there, each in account.sums.items()
                if (there.participant, there.peer, there.out) == (key.peer, key.participant, not key.out)
                and (there.view, there.layer, there.kind) == (key.view, key.layer, key.kind)
            ]
            assert other == total


def test_sums_of_every_ledger_equal_those_of_the_wire(run: Recorded) -> None:
    figures = figures_of(run.folder, with_ledgers=True)
    assert figures["explained"] and figures["differences"] == []
    layers, peers = 2, 2
    for told in figures["ledgers"].values():
        assert told == {"equalSums": peers * (layers * len(TENSORS) + 1), "unsentBytes": 0}


def frames(folder: Path) -> Iterator[Frame]:
    """Every frame of every connection."""
    for path in sorted(folder.glob("*.tape")):
        for found in frames_of(path):
            assert isinstance(found, Frame)
            yield found


def test_no_frame_holds_what_a_buffer_held_before(run: Recorded) -> None:
    total = 0
    for frame in frames(run.folder):
        total += 1
        assert POISON not in frame.payload and POISON[3:9] not in frame.payload
    assert total > 1000


def test_only_the_owner_may_read_a_recording(run: Recorded) -> None:
    assert stat.S_IMODE(run.folder.stat().st_mode) == 0o700
    modes = {stat.S_IMODE(path.stat().st_mode) for path in run.folder.iterdir()}
    assert modes == {0o600}


def test_nothing_is_recorded_unless_somebody_asks(monkeypatch: pytest.MonkeyPatch, run: Recorded) -> None:
    monkeypatch.delenv(tap.VARIABLE, raising=False)
    tap.begin_if_asked(run.configs[0])
    assert tap.socket_class() is ssl.SSLSocket


def test_a_node_that_records_says_so_loudly(
    tmp_path: Path, run: Recorded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(tap.VARIABLE, str(tmp_path / "tap"))
    try:
        tap.begin_if_asked(run.configs[0])
    finally:
        tap.end()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert (
        record.getMessage().startswith("THE WIRETAP IS ON") and str(tmp_path / "tap") in record.getMessage()
    )


def test_a_folder_that_can_not_be_used_ends_the_node(
    tmp_path: Path, run: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(tap.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="PCMOE_WIRETAP: .*file can't be used: File exists"):
        tap.begin_if_asked(run.configs[0])
    assert tap.socket_class() is ssl.SSLSocket


# ---- the parser finds what does not belong


def poke(folder: Path, kind: Kind, change: Callable[[Frame, bytearray], None]) -> None:
    """Change the payload of the first sent frame of a kind that has rows and lies in one piece of the recording."""
    for path in sorted(folder.glob("*.tape")):
        data = bytearray(path.read_bytes())
        for found in frames_of(path):
            if isinstance(found, Frame) and found.out and found.header.kind is kind and found.header.rows > 1:
                at = data.find(found.payload)
                if at < 0:
                    continue
                payload = bytearray(found.payload)
                change(found, payload)
                data[at : at + len(payload)] = payload
                path.write_bytes(data)
                return
    raise AssertionError(f"no {kind.name} to change")


def set_last(_frame: Frame, payload: bytearray) -> None:
    payload[-1] = 1


def set_inner_gap(frame: Frame, payload: bytearray) -> None:
    """The last byte before the padding is a gap, or the last count: either is wrong."""
    payload[frame.header.payload_length - 1] ^= 0x40


def set_expert(frame: Frame, payload: bytearray) -> None:
    rows = frame.header.rows * 32 * frame.header.dtype.size
    weights = -(-rows // 16) * 16
    experts = weights + -(-4 * frame.header.slots // 16) * 16
    payload[experts : experts + 2] = b"\xff\xff"


def set_weight(frame: Frame, payload: bytearray) -> None:
    rows = frame.header.rows * 32 * frame.header.dtype.size
    weights = -(-rows // 16) * 16
    payload[weights : weights + 4] = b"\x00\x00\x00\x41"  # 8.0


def set_row(_frame: Frame, payload: bytearray) -> None:
    payload[:4] = b"\x80\x7f\x80\x7f"  # not a number in float32, infinities in bfloat16


@pytest.mark.parametrize(
    ("kind", "change", "why"),
    [
        (Kind.FORWARD, set_last, "padding is not zero"),
        (Kind.FORWARD, set_inner_gap, "gaps is not zero"),
        (Kind.FORWARD, set_expert, "an expert is not hosted there"),
        (Kind.FORWARD, set_weight, "don't sum to 1"),
        (Kind.BACKWARD, set_row, "gradients are not finite"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_a_byte_that_does_not_belong_is_residue(
    kind: Kind, change: Callable[[Frame, bytearray], None], why: str, copied: Path
) -> None:
    poke(copied, kind, change)
    account = account_of(copied)
    assert account.residue > 0
    assert why in " ".join(account.faults)
    assert account.explained + account.residue == account.recorded


def test_bytes_that_are_no_frame_are_residue(copied: Path) -> None:
    path = sorted(copied.glob("*.tape"))[0]
    with path.open("ab") as file:
        file.write(tap.PIECE.pack(tap.OUT, 100) + b"x" * 100)
    account = account_of(copied)
    assert account.residue == 100
    assert "no frame begins here: protocol version is 120" in account.faults[0]


def test_the_beginning_of_a_frame_is_cut_short_and_no_residue(copied: Path) -> None:
    path = max(copied.glob("*.tape"), key=lambda each: each.stat().st_size)
    first = next(frame for frame in frames_of(path) if isinstance(frame, Frame))
    data = path.read_bytes()
    head = data[tap.PIECE.size : tap.PIECE.size + HEADER_SIZE]
    with path.open("ab") as file:
        file.write(tap.PIECE.pack(tap.OUT, HEADER_SIZE) + head)
    account = account_of(copied)
    assert first.header.kind is Kind.HELLO
    assert (account.residue, account.cut_short) == (0, HEADER_SIZE)


def test_a_message_that_the_ledger_does_not_have_is_a_difference(run: Recorded, tmp_path: Path) -> None:
    config = run.configs[0]
    account = account_of(run.folder)
    told = (Path(config.log_directory) / FILE).read_text().splitlines()
    record = json.loads(told[-2])
    sent = record["peers"]["berlin"]["layers"]["0"]["FORWARD"]
    sent["rows"] -= 1
    sent["bytes"]["hiddenStates"] -= 1
    (tmp_path / FILE).write_text("\n".join([*told[:-2], json.dumps(record), told[-1]]) + "\n")
    found = compared(account, config.participant, read_ledger(tmp_path / FILE))
    (told_of,) = found.differences
    assert told_of.startswith("amsterdam to berlin, view 1, layer 0, FORWARD: hiddenStates ")


def test_the_command_says_whether_all_is_well_by_its_exit_code(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def called(folder: Path) -> int:
        monkeypatch.setattr("sys.argv", ["wiretap", str(folder), "--ledger"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    assert called(copied) == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (figures["residueBytes"], figures["explained"]) == (0, True)
    poke(copied, Kind.FORWARD, set_last)
    assert called(copied) == 1
    (tmp_path / "empty").mkdir()
    assert called(tmp_path / "empty") == ConfigError.exit_code
    assert capsys.readouterr().err == f"wiretap: {tmp_path / 'empty'}: holds no recording\n"


# ---- a run that is disturbed


def test_what_is_sent_again_after_a_cut_is_told_apart_and_the_sums_are_still_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = configs_of(Case(n=2, rounds=2, steps_per_round=4), tmp_path)
    monkeypatch.setenv(tap.VARIABLE, str(tmp_path / "tap"))
    send, cut = tap.TappedSocket.send, {"left": 3, "messages": 0}

    def cutting(self: tap.TappedSocket, data: Any, flags: int = 0) -> int:
        if len(data) > 1000:
            cut["messages"] += 1
            if cut["left"] and cut["messages"] % 40 == 0:
                cut["left"] -= 1
                send(self, memoryview(data)[:500], flags)
                raise ConnectionResetError("planted")
        return send(self, data, flags)

    monkeypatch.setattr(tap.TappedSocket, "send", cutting)
    try:
        run_tls_threads(configs)
    finally:
        tap.end()
    assert cut["left"] == 0
    account: Account = account_of(tmp_path / "tap")
    assert (account.residue, account.faults) == (0, [])
    assert account.cut_short > 0
    assert account.explained + account.cut_short == account.recorded
    for config in configs:
        ledger = read_ledger(Path(config.log_directory) / FILE)
        found = compared(account, config.participant, ledger)
        assert (found.differences, found.unsent) == ([], 0)
        assert found.equal > 10


def test_a_view_that_is_lost_leaves_nothing_on_the_wire_that_the_ledger_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was still queued when the view broke is in the ledger, and never left: that way round only."""
    configs = configs_of(
        Case(n=2, rounds=2, steps_per_round=3, overrides={"transport": {"on_peer_loss": "Wait"}}), tmp_path
    )
    monkeypatch.setenv(tap.VARIABLE, str(tmp_path / "tap"))
    lost: list[int] = []
    apply = step._apply

    def applied(node: step.Participant, number: int, *given: Any, **named: Any) -> None:
        if number == 4 and node.config.index == 0 and not lost:
            lost.append(number)
            raise PeerLostError("planted")
        apply(node, number, *given, **named)

    monkeypatch.setattr(step, "_apply", applied)
    try:
        run_tls_threads(configs)
    finally:
        tap.end()
    assert lost
    account = account_of(tmp_path / "tap")
    assert (account.residue, account.faults) == (0, [])
    assert {key.view for key in account.sums if key.layer is not None} == {1, 2}
    for config in configs:
        ledger = read_ledger(Path(config.log_directory) / FILE)
        assert ledger.ended == {1: "PeerLostError", 2: None}
        assert compared(account, config.participant, ledger).differences == []


def test_the_environment_of_tests_does_not_record() -> None:
    assert tap.VARIABLE not in os.environ
