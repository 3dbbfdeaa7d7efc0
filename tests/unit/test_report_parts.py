"""A participant's journal: printed by the node's side, read by ours, and never trusted."""

import base64
import hashlib
import io
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from tests.unit.fake_node import round_record

from pcmoe_node import journal_print
from pcmoe_node.journal_print import print_journal
from pcmoe_operator.errors import UsageError
from pcmoe_operator.report import parts
from pcmoe_operator.report.parts import MAX_BYTES, PACKED_FORMAT, part_of, unpacked

ROOT = Path(__file__).parents[2]
EVENT = {"time": 1.7e9, "kind": "ViewEntered", "message": "view 1 begins after round 0"}


def journal(folder: Path, rounds: int = 3) -> Path:
    """A log folder as a node leaves it, with a line that is half written."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(round_record(n, ["lyon"])) + "\n" for n in range(rounds))
    (folder / "rounds.jsonl").write_text(lines + '{"round": ')
    (folder / "events.jsonl").write_text(json.dumps(EVENT) + "\n")
    return folder


def printed(folder: Path) -> bytes:
    """What the program prints of it."""
    to = io.StringIO()
    print_journal(folder, to)
    return to.getvalue().encode()


def answer(**changes: Any) -> bytes:
    """A node's answer to `/report`."""
    good = {"participant": "berlin", "rounds": [round_record(0, [])], "events": [EVENT], "truncated": False}
    return json.dumps(good | changes).encode()


def packed(text: bytes, digest: str | None = None) -> bytes:
    """A log as the program prints it, of any text."""
    body = base64.b64encode(zlib.compress(text)).decode()
    return f"{PACKED_FORMAT}\n{body}\nend {digest or hashlib.sha256(text).hexdigest()}\n".encode()


def test_what_a_node_answers_is_read() -> None:
    part = part_of(answer(truncated=True), "berlin")
    assert [r.round for r in part.rounds] == [0]
    assert [(e.who, e.kind) for e in part.events] == [("berlin", "ViewEntered")]
    assert part.truncated


def test_what_the_program_prints_is_read_by_the_report(tmp_path: Path) -> None:
    part = part_of(unpacked(printed(journal(tmp_path))), "berlin")
    assert [r.round for r in part.rounds] == [0, 1, 2]
    assert [e.message for e in part.events] == [EVENT["message"]]
    assert not part.truncated


def test_the_program_runs_without_torch_writes_nothing_and_keeps_lines_short(tmp_path: Path) -> None:
    folder = journal(tmp_path, rounds=500)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    command = [sys.executable, "-X", "importtime", "-m", "pcmoe_node.journal_print"]
    done = subprocess.run(
        [*command, str(folder)],
        capture_output=True,
        timeout=60,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "node"), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert len(part_of(unpacked(done.stdout), "berlin").rounds) == 500
    assert max(map(len, done.stdout.splitlines())) <= 4096
    assert len(done.stdout) < len(before[folder / "rounds.jsonl"]) / 5
    assert b"torch" not in done.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_without_a_journal_prints_an_empty_one(tmp_path: Path) -> None:
    assert part_of(unpacked(printed(tmp_path / "nothing")), "berlin").rounds == []


def test_of_a_journal_that_is_too_long_the_newest_lines_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = journal(tmp_path, rounds=9)
    size = (folder / "rounds.jsonl").stat().st_size
    monkeypatch.setattr(journal_print, "LIMITS", {"rounds": size // 2, "events": 10_000})
    part = part_of(unpacked(printed(folder)), "berlin")
    assert part.truncated
    assert [r.round for r in part.rounds] == [5, 6, 7, 8]


def test_a_journal_that_cant_be_read_ends_the_program_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "pcmoe_node.journal_print", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": str(ROOT / "node")},
    )
    assert done.returncode == 66
    assert done.stderr == f"{tmp_path}: can't be read: Is a directory\n"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (b"nonsense", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "no list rounds"),
        (answer(events={}), "no list events"),
        (answer(rounds=[1]), "rounds: line 1 is no round"),
        (answer(rounds=[round_record(0, []), {"round": 1}]), "rounds: line 2 is no round: it has no step"),
        (answer(events=["<script>"]), "events: line 1 is no event: not valid JSON"),
    ],
)
def test_an_answer_that_is_no_journal_is_an_error_that_says_what_is_wrong(given: bytes, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        part_of(given, "berlin")


def test_an_answer_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_BYTES", 2**20)
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        part_of(answer(more="x" * 2**20), "berlin")


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (b"", "is no journal"),
        (b"Traceback (most recent call last):\n", "is no journal"),
        (f"{PACKED_FORMAT}\nAAAA\n".encode(), "a part of it was lost"),
        (packed(b"{}", "0" * 64), "its digest is another"),
        (f"{PACKED_FORMAT}\n%%%\nend 0\n".encode(), "can't be unpacked"),
        (f"{PACKED_FORMAT}\nAAAA\nend 0\n".encode(), "can't be unpacked"),
    ],
)
def test_a_log_that_is_not_a_whole_journal_is_refused(log: bytes, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        unpacked(log)


def test_a_log_that_lost_its_beginning_is_refused(tmp_path: Path) -> None:
    log = printed(journal(tmp_path, rounds=500))
    with pytest.raises(UsageError, match="is no journal"):
        unpacked(log[len(log) // 2 :])


def test_a_small_log_that_unpacks_to_a_huge_one_is_refused() -> None:
    with pytest.raises(UsageError, match="larger than 64 MiB"):
        unpacked(packed(bytes(MAX_BYTES + 1)))
