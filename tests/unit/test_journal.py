"""Rounds and events on disk, and the report that the status server makes of them."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pcmoe_node import journal as module
from pcmoe_node.errors import PeerLostError, StorageError
from pcmoe_node.exchange import wire
from pcmoe_node.exchange.inbox import relayed
from pcmoe_node.journal import MESSAGE_LIMIT, REPORT_LINES, Journal


def report(journal: Journal) -> Any:
    """The report as JSON; NaN and its like are none."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(journal.report("berlin"), parse_constant=refuse)


def test_the_journal_appends_one_object_per_line(tmp_path: Path) -> None:
    for number in (1, 2):
        journal = Journal(tmp_path / "log")
        journal.round({"round": number, "trainLoss": None})
        journal.event("Failed", "berlin\nfell silent")
    rounds = (tmp_path / "log" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in rounds] == [
        {"round": 1, "trainLoss": None},
        {"round": 2, "trainLoss": None},
    ]
    events = (tmp_path / "log" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["message"] for line in events] == ["berlin\nfell silent"] * 2


def test_a_journal_that_cannot_be_written_is_a_storage_error_naming_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    (tmp_path / "rounds.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"rounds\.jsonl: can't be written: Is a directory"):
        journal.round({"round": 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file: .*File exists"):
        Journal(tmp_path / "file")


def test_a_line_that_a_killed_process_left_half_written_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_text('{"round": 1}\n{"rou')
    Journal(tmp_path).round({"round": 2})
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"round": 1}, {"round": 2}]


def test_an_event_that_can_not_be_written_is_no_reason_to_end_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path)
    (tmp_path / "events.jsonl").mkdir()
    journal.event("ViewLeft", "berlin is lost")
    assert "event ViewLeft (berlin is lost) is not written down" in caplog.text


def test_an_event_is_never_long_whoever_made_its_words(tmp_path: Path) -> None:
    Journal(tmp_path).event("Failed", "x" * 100_000)
    assert len(json.loads((tmp_path / "events.jsonl").read_text())["message"]) == MESSAGE_LIMIT


def test_what_a_peer_says_of_its_end_is_short_and_printable_before_it_is_an_event() -> None:
    given = PeerLostError("\x1b[31m\n" + "é" * 10_000)
    _, origin, reason = wire.decode_abort(wire.encode_abort(given, 1))
    event = str(relayed(PeerLostError, ("berlin", "lyon", "porto"), 2, origin, reason))
    assert len(event) < MESSAGE_LIMIT and event.isprintable()


def test_a_report_of_nothing_is_empty_and_whole(tmp_path: Path) -> None:
    empty = {"participant": "berlin", "rounds": [], "events": [], "truncated": False}
    assert report(Journal(tmp_path)) == empty


def test_a_report_holds_what_the_files_hold_and_nothing_else(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(3):
        journal.round({"round": number, "heldOutLoss": 2.5})
    journal.event("ViewEntered", 'view 1 begins "now", é')
    found = report(journal)
    assert found["rounds"] == [{"round": number, "heldOutLoss": 2.5} for number in range(3)]
    assert [event["message"] for event in found["events"]] == ['view 1 begins "now", é']
    assert found["truncated"] is False and len(found) == 4


def test_a_report_leaves_out_a_line_that_is_being_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.round({"round": 1})
    with open(tmp_path / "rounds.jsonl", "a") as file:
        file.write('{"round": 2, "trainL')
    assert report(journal)["rounds"] == [{"round": 1}]


def test_a_report_of_a_long_journal_has_the_newest_lines_and_says_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    lines = [json.dumps({"round": number}) + "\n" for number in range(REPORT_LINES + 7)]
    (tmp_path / "rounds.jsonl").write_text("".join(lines))
    found = report(journal)
    assert [line["round"] for line in found["rounds"]] == list(range(7, REPORT_LINES + 7))
    assert found["truncated"] is True


def test_a_report_never_grows_beyond_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPORT_BYTES", 1000)
    journal = Journal(tmp_path)
    for number in range(50):
        journal.round({"round": number, "filler": "x" * 80})
    text = journal.report("berlin")
    found = report(journal)
    assert len(text) < 1300 and found["truncated"] is True
    assert [line["round"] for line in found["rounds"]] == list(range(50 - len(found["rounds"]), 50))
    assert len(found["rounds"]) >= 8


@pytest.mark.parametrize("line", ["NaN", '{"trainLoss": NaN}', "[1]", "7", '{"a": ', "[" * 100_000, "\xff"])
def test_a_report_stays_json_whatever_a_line_has_become(tmp_path: Path, line: str) -> None:
    journal = Journal(tmp_path)
    (tmp_path / "rounds.jsonl").write_bytes(b'{"round": 1}\n' + line.encode("latin-1") + b'\n{"round": 2}\n')
    found = report(journal)
    assert found["rounds"] == [{"round": 1}, {"round": 2}] and found["truncated"] is True


def test_a_report_of_random_bytes_is_json(tmp_path: Path) -> None:
    journal, source = Journal(tmp_path), random.Random(5)
    for _ in range(50):
        (tmp_path / "events.jsonl").write_bytes(source.randbytes(400))
        assert report(journal)["events"] == []
