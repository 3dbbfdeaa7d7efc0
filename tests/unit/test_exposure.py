"""A participant's ledger, as its people read it: sums, words, and lines that can't be believed."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from tests.exposed import REPORT, paths, unexplained
from tests.unit.test_exposed_names import SOURCES, words_of
from tests.unit.test_report import NAMES, make_run
from typer.testing import CliRunner

from pcmoe_operator.cli import app, main
from pcmoe_operator.errors import UsageError
from pcmoe_operator.report import write_report
from pcmoe_operator.report.exposure import FILE, exposure_figures, exposure_of, exposures_in

LEAF, AUTHORITY = "a" * 64, "b" * 64


def view(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A view was entered."""
    corpus = {"fingerprint": "c" * 64, "documents": 8, "heldOut": 2}
    return {
        "record": "view",
        "view": number,
        "corpus": corpus,
        "members": {"lyon": {}, "turin": {}},
        **changes,
    }


def sent(rows: int, part: str) -> dict[str, Any]:
    """Messages of one kind."""
    parts = {"header": 72, part: 64 * rows, "gaps": 3, "padding": 100}
    return {"messages": 1, "empty": 0, "rows": rows, "slots": rows, "dtype": "float32", "bytes": parts}


def line(number: int = 1, record: str = "round", view: int = 1, **changes: Any) -> dict[str, Any]:
    """A round, or the rest of a view."""
    lyon = {
        "leaf": LEAF,
        "authorities": AUTHORITY,
        "tokens": 90,
        "targets": 60,
        "heldOut": 10,
        "documents": {"1": [4], "2": [0, 7]},
        "control": {"messages": 2, "bytes": 162},
        "smallest": 3,
        "layers": {"0": {"FORWARD": sent(9, "hiddenStates"), "FORWARD_REPLY": sent(5, "outputs")}},
    } | changes.pop("lyon", {})
    rest = {"because": None, "refusedFrames": 0} if record == "rest" else {}
    return {
        "record": record,
        "view": view,
        "round": number,
        "own": {"tokens": 100, "targets": 80, "heldOut": 20},
        "refusedConnections": {"identity": 2},
        "peers": {"lyon": lyon},
        **rest,
        **changes,
    }


def figures(*lines: dict[str, Any]) -> dict[str, Any]:
    """The sums of these lines."""
    return exposure_figures(exposure_of([json.dumps(each) for each in lines], "berlin", "a ledger"))


def write(folder: Path, name: str, *lines: dict[str, Any]) -> Path:
    """A ledger in a run's folder."""
    path = folder / name / "log" / FILE
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def test_lines_add_up() -> None:
    lyon = figures(view(), line(1), line(2), line(2, "rest"))["peers"]["lyon"]
    assert (lyon["tokensSeen"], lyon["tokensSeenPercent"]) == (270, 90.0)
    assert (lyon["targetsSeen"], lyon["targetsSeenPercent"]) == (180, 75.0)
    assert (lyon["heldOutTokensSeen"], lyon["heldOutTokensSeenPercent"]) == (30, 50.0)
    assert lyon["bytesAsked"] == {"gaps": 9, "header": 216, "hiddenStates": 3 * 576, "padding": 300}
    assert lyon["bytesAnswered"]["outputs"] == 3 * 320
    assert lyon["bytes"] == sum(lyon["bytesAsked"].values()) + sum(lyon["bytesAnswered"].values()) + 3 * 162
    assert (lyon["messages"], lyon["rows"], lyon["smallestRequestRows"]) == (12, 27, 3)
    assert (lyon["certificates"], lyon["authorities"]) == ([LEAF], [AUTHORITY])


def test_documents_are_told_by_how_often_they_were_seen() -> None:
    lyon = figures(view(), line(1), line(2), line(3, lyon={"documents": {"1": [4, 5]}}))["peers"]["lyon"]
    assert lyon["documentsSeen"] == 4
    assert lyon["documentsByTimesSeen"] == {"0": 6, "1": 1, "2-3": 1, "4-7": 2}


def test_documents_of_another_corpus_are_others() -> None:
    corpus = {"fingerprint": "d" * 64, "documents": 3, "heldOut": 0}
    lyon = figures(view(), line(1), line(1, "rest"), view(2, corpus=corpus), line(2, view=2))["peers"]["lyon"]
    assert lyon["documentsSeen"] == 6


def test_a_round_that_is_done_again_counts_again_and_is_told() -> None:
    found = figures(view(), line(1), line(1, "rest"), view(2), line(1, view=2), line(1, "rest", view=2))
    assert (found["rounds"], found["roundsAgain"], found["views"], found["openViews"]) == (1, 1, 2, [])
    assert found["tokens"] == 400


def test_a_view_without_an_end_is_told() -> None:
    assert figures(view(), line(1), view(2), line(2, view=2), line(2, "rest", view=2))["openViews"] == [1]


def test_a_peer_that_was_sent_nothing_is_told_too() -> None:
    turin = figures(view(), line(1))["peers"]["turin"]
    assert (turin["bytes"], turin["tokensSeen"], turin["smallestRequestRows"]) == (0, 0, None)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (line(record="other"), "record must be view, round or rest"),
        (line(view=-1), "view must be a whole number from 0 on"),
        (line(lyon={"tokens": 1.5}), "tokens must be a whole number from 0 on"),
        (line(lyon={"tokens": True}), "tokens must be a whole number from 0 on"),
        (line(lyon={"documents": {"x": [1]}}), "documents must be an object by number of times"),
        (line(lyon={"documents": {"1": ["x"]}}), "documents must be whole numbers from 0 on"),
        (line(lyon={"layers": {"-1": {}}}), "layers must be an object by number of the layer"),
        (line(lyon={"layers": {"0": {"HELLO": {}}}}), "a kind of message must be one of FORWARD"),
        (line(lyon={"leaf": "\x1b[31m"}), "leaf must be printable text"),
        (
            line(peers={str(number): {} for number in range(65)}),
            "peers must be an object with at most 64 keys",
        ),
        ({key: value for key, value in line().items() if key != "own"}, "it has no own"),
        (line(record="rest", refusedFrames=None), "refusedFrames must be a whole number"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_line_that_can_not_be_believed_is_named_by_its_number(given: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError) as caught:
        figures(view(), given)
    assert str(caught.value).startswith("a ledger: line 2 is no entry of a ledger: ")
    assert why in str(caught.value)


def test_a_folder_without_a_ledger_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no ledger: no NAME/log/exposure\.jsonl of any participant"):
        exposures_in(tmp_path)
    write(tmp_path, "berlin", view())
    with pytest.raises(
        UsageError, match=r"no ledger of oslo: no oslo/log/exposure\.jsonl; there is one of berlin"
    ):
        exposures_in(tmp_path, "oslo")


# ---- the command


def test_the_command_says_it_in_words(tmp_path: Path) -> None:
    write(tmp_path, "berlin", view(), line(1), line(1, "rest", refusedFrames=1))
    write(tmp_path, "oslo", view(), line(1))
    called = CliRunner().invoke(app, ["exposure", str(tmp_path)])
    assert called.exit_code == 0, called.output
    text = " ".join(called.output.split())
    assert "berlin: 1 round, 200 tokens read in training, 40 in evaluations" in text
    assert "to lyon: tokens seen 180 of 200 (90.0 %), at one layer or more" in text
    assert "next tokens 120 of 160 (75.0 %) by their gradient" in text
    assert "documents 3 of 10 (30.0 %); by pieces seen: 0: 7, 2-3: 1, 4-7: 2" in text
    assert "sent about own data 1.5 KB: 1.2 KB hidden states, 200 B padding" in text
    assert "frames refused: 1" in text
    assert text.count("its end is not written down") == 1
    assert LEAF in text and AUTHORITY in text


def test_the_command_tells_one_participant_as_json(tmp_path: Path) -> None:
    for name in ("berlin", "oslo"):
        write(tmp_path, name, view(), line(1))
    called = CliRunner().invoke(app, ["exposure", str(tmp_path), "--participant", "oslo", "-o", "json"])
    told = json.loads(called.output)
    assert told["format"] == "pcmoe-exposure-sums/1"
    assert told["participants"] == {"oslo": figures(view(), line(1))}


def test_the_command_ends_with_64_where_there_is_no_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pcmoe", "exposure", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 64
    assert "holds no ledger" in capsys.readouterr().err


# ---- the report


def run_with_ledgers(folder: Path) -> Path:
    """A run whose first participant has a ledger."""
    made = make_run(folder)
    path = made / NAMES[0] / "log" / FILE
    told = [view(), line(1), line(2), line(2, "rest", refusedFrames=1), view(2), line(2, view=2)]
    path.write_text("".join(json.dumps(each) + "\n" for each in told))
    return made


def test_the_report_shows_the_sums_of_the_ledgers_that_lie_there(tmp_path: Path) -> None:
    written = write_report(run_with_ledgers(tmp_path))
    assert set(written.figures["exposure"]) == {"berlin"}
    own = written.figures["exposure"]["berlin"]
    assert (own["documents"], own["roundsAgain"], own["openViews"], own["refusedFrames"]) == (10, 1, 1, 1)
    assert own["peers"]["lyon"] == {
        "tokensPercent": 90.0,
        "nextTokensPercent": 75.0,
        "heldOutPercent": 50.0,
        "documentsSeen": 3,
        "bytesAsked": 4 * 751,
        "bytesAnswered": 4 * 495,
    }
    page = written.page.read_text()
    assert "What left, and to whom" in page and "90.0 %" in page and "3 of 10" in page
    assert own["refusedConnections"] == 2
    assert "<td>berlin</td><td>1</td><td>2</td><td>1</td><td>1</td>" in page


def test_a_report_without_ledgers_has_no_such_part(tmp_path: Path) -> None:
    written = write_report(make_run(tmp_path))
    assert written.figures["exposure"] == {}
    page = written.page.read_text()
    assert "What left, and to whom" not in page and "ledger lies here: each keeps its own" in page


def test_every_figure_of_a_ledger_in_a_report_has_a_reason_to_leave(tmp_path: Path) -> None:
    found = json.loads(write_report(run_with_ledgers(tmp_path)).data.read_text())["exposure"]
    assert unexplained(paths({"exposure": found}, NAMES), REPORT, "report.json") == []


# ---- it stays where it is

KNOW_IT = {"ledger_book.py", "exposure.py"}


def test_nothing_that_answers_others_knows_where_the_ledger_is() -> None:
    knowing = {path.name for path in SOURCES if FILE in words_of(ast.parse(path.read_text()))}
    assert knowing == KNOW_IT
