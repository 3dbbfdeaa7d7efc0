"""What a report says of baselines, of what a partner could read, and of how models write; and where there is none."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.exposed import ANY, OPEN_FIELDS, REPORT, paths, unexplained
from tests.unit.fake_node import round_record
from tests.unit.test_report import NAMES, Loads, figures, make_run

from pcmoe_operator.errors import UsageError
from pcmoe_operator.report import write_report
from pcmoe_operator.report.charts import Dot, DotRow, dot_chart, marks
from pcmoe_operator.report.headlines import headlines, spread, verdicts
from pcmoe_operator.report.words import ARRANGEMENTS, ATTACKS

KINDS = ("alone-shard", "alone-all", "union")
TOGETHER = 2.8
"""The last held-out loss of everybody in `make_run`."""
EXAMPLE = 4_096_000


def journal(folder: Path, loss: float, rounds: int = 5, tensors: int = EXAMPLE) -> None:
    """A baseline's journal, whose last held-out loss is given."""
    (folder / "log").mkdir(parents=True, exist_ok=True)
    records = [round_record(number, []) for number in range(rounds)]
    records[-1] |= {"heldOutLoss": loss}
    records[-1]["memory"] |= {"tensorBytes": {"backbone": tensors}}
    (folder / "log" / "rounds.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))


def with_baselines(folder: Path, losses: dict[str, float] | None = None, **changes: Any) -> Path:
    """A run with all three kinds of baselines."""
    made = make_run(folder)
    for kind, loss in ({"alone-shard": 2.7, "alone-all": 2.6, "union": 3.0} | (losses or {})).items():
        for name in NAMES:
            journal(made / "baselines" / kind / name, loss, **changes)
            done = made / "baselines" / kind / ("" if kind == "union" else name) / "done.json"
            done.write_text("{}")
    return made


def share(value: float) -> dict[str, float]:
    """A share and its interval."""
    return {"value": value, "low": value - 0.01, "high": min(1.0, value + 0.01)}


def reading(
    layer: int, attack: str, signal: str, token: str, taught: str | None, value: float
) -> dict[str, Any]:
    """What one attack read of one of three layers, the last of which stays at home."""
    return {
        "layer": layer,
        "sent_if_at_end": 2 - layer,
        "rows_share": 0.5,
        "attack": attack,
        "signal": signal,
        "token": token,
        "taught": taught,
        "rows": 100,
        "read": share(value),
        "most_frequent": share(0.2),
        "unigram": share(0.1),
    }


def leak(name: str = "berlin", **changes: Any) -> dict[str, Any]:
    """What `python -m pcmoe_node.leak --output` writes."""
    now = "round 4"
    readings = [
        each
        for layer in range(3)
        for each in (
            reading(layer, "linear probe", "hidden states", "current", "the start", 0.9 + layer / 100),
            reading(layer, "linear probe", "hidden states", "current", now, 0.95),
            reading(layer, "linear probe", "hidden states", "next", now, 0.4),
            reading(layer, "closed form", "gradients", "next", None, 0.6 + layer / 10),
            reading(layer, "linear probe", "gradients", "next", "the start", 0.85),
            reading(layer, "linear probe", "gradients", "next", now, 0.88),
        )
    ]
    first = {
        "weights": "the start",
        "host": "lyon",
        "documents": 9,
        "tokens": 1000,
        "tokens_share": 0.8,
        "at_end": 1,
    }
    good = {
        "version": "pcmoe-leak/1",
        "participant": name,
        "caveat": "These attacks only; learned ones may do better.",
        "adversaryKnows": {"closed form": "the head", "linear probe": "other text <of> the owner's"},
        "limits": ["One host that keeps its rows."],
        "measurements": [first | {"readings": []}, first | {"weights": now, "readings": readings}],
    }
    return good | changes


def with_leak(folder: Path, **changes: Any) -> Path:
    """A run whose first participant has measured what lyon could read."""
    made = make_run(folder)
    (made / "berlin" / "leak.json").write_text(json.dumps(leak(**changes)))
    return made


def with_texts(folder: Path, organisations: Any, **more: Any) -> Path:
    """A run with continuations."""
    made = make_run(folder)
    (made / "continuations.json").write_text(json.dumps({"organisations": organisations} | more))
    return made


def page_of(folder: Path) -> str:
    """The page of a run's report."""
    return write_report(folder).page.read_text()


# Baselines


def test_without_baselines_the_report_says_how_to_measure_them(tmp_path: Path) -> None:
    written = write_report(make_run(tmp_path))
    page = written.page.read_text()
    assert written.figures["baselines"] is None
    assert "<code>pcmoe run --resume DIR --baselines</code>" in page and "not measured" in page
    assert any("was not measured: `pcmoe run --baselines`" in each for each in headlines(written.figures))


def test_each_baseline_stands_beside_the_run_with_loss_tensors_and_peak(tmp_path: Path) -> None:
    found = figures(with_baselines(tmp_path))["baselines"]
    assert found["round"] == 4
    assert list(found["arrangements"]) == ["together", *KINDS]
    assert found["arrangements"]["together"]["meanHeldOut"] == TOGETHER
    alone = found["arrangements"]["alone-all"]
    assert (alone["heldOut"]["oslo"], alone["meanHeldOut"]) == (2.6, 2.6)
    assert alone["tensorBytes"] == {"least": EXAMPLE, "most": EXAMPLE}
    assert alone["peakBytes"]["most"] == 220 * 2**20
    page = (tmp_path / "report.html").read_text()
    assert all(text in page for text in ARRANGEMENTS.values())
    assert "<td>mean</td><td>2.800</td><td>2.700</td><td>2.600</td><td>3.000</td>" in page


@pytest.mark.parametrize(
    ("alone", "said", "better"),
    [
        (2.7, "training together did not beat training alone in this run", 0),
        (
            2.805,
            "training together did not clearly beat training alone in this run (a difference below 0.03",
            4,
        ),
        (2.9, "training together beat training alone at every organisation in this run", 4),
    ],
)
def test_what_baselines_say_is_told_whatever_it_is(
    tmp_path: Path, alone: float, said: str, better: int
) -> None:
    written = write_report(with_baselines(tmp_path, {"alone-shard": alone}))
    first, *others = verdicts(written.figures)
    assert said in first and f"at {better} of 4 organisations" in first
    assert "mean held-out loss 2.800 against" in first
    assert first in headlines(written.figures)
    assert others[-1] == "This is one run with one seed; another one gives other figures."
    page = written.page.read_text()
    assert all(f"<li>{each.replace(chr(39), '&#x27;')}</li>" in page for each in (first, *others))


def test_one_organisation_that_is_worse_off_makes_it_an_average(tmp_path: Path) -> None:
    folder = with_baselines(tmp_path, {"alone-shard": 3.2})
    journal(folder / "baselines" / "alone-shard" / "oslo", 2.5)
    first = verdicts(write_report(folder).figures)[0]
    assert "beat training alone on average in this run" in first and "at 3 of 4 organisations" in first


def test_memory_that_a_baseline_takes_more_is_told(tmp_path: Path) -> None:
    told = " ".join(verdicts(write_report(with_baselines(tmp_path, tensors=30 * 2**20)).figures))
    assert "which takes 2.5 times the memory for tensors" in told
    assert "2.600 on average, 0.200 better than together" in told
    assert "3.000 on average, 0.200 worse than together" in told


def test_a_baseline_that_is_not_finished_is_not_compared_and_named(tmp_path: Path) -> None:
    folder = with_baselines(tmp_path)
    (folder / "baselines" / "alone-all" / "oslo" / "done.json").unlink()
    (folder / "baselines" / "union" / "done.json").unlink()
    found = figures(folder)["baselines"]
    assert set(found["arrangements"]["alone-all"]["heldOut"]) == {"berlin", "lyon", "turin"}
    assert "union" not in found["arrangements"]
    assert (
        "Not measured, or not to the same round: alone, all experts (oslo); "
        "one model, all text (berlin, lyon, oslo, turin)." in (folder / "report.html").read_text()
    )


def test_a_baseline_of_another_round_is_not_compared(tmp_path: Path) -> None:
    assert figures(with_baselines(tmp_path, rounds=3))["baselines"] is None


def test_a_baseline_whose_loss_overflowed_leaves_a_report(tmp_path: Path) -> None:
    found = figures(with_baselines(tmp_path, {"alone-shard": float("nan")}))["baselines"]
    assert found["arrangements"]["alone-shard"]["meanHeldOut"] is None
    assert "alone-shard" not in found["against"]


# What could be read


def test_without_a_measurement_the_report_says_how_to_make_one(tmp_path: Path) -> None:
    written = write_report(make_run(tmp_path))
    assert written.figures["leak"] == {}
    page = written.page.read_text()
    assert "Not measured for berlin, lyon, oslo, turin: run <code>python -m pcmoe_node.leak --config" in page
    assert any("was not measured: `python -m pcmoe_node.leak`" in each for each in headlines(written.figures))


def test_what_is_read_is_told_by_layer_with_floors_and_intervals(tmp_path: Path) -> None:
    found = figures(with_leak(tmp_path))["leak"]["berlin"]
    assert (found["weights"], found["host"], found["sentPercent"]) == ("round 4", "lyon", 80.0)
    assert [layer["leaves"] for layer in found["layers"]] == [True, True, False]
    last = found["layers"][1]
    assert last["ownToken"]["probe"] == {"value": 91.0, "low": 90.0, "high": 92.0}
    assert last["ownToken"]["probeUpperBound"]["value"] == 95.0
    assert last["nextToken"]["formula"]["value"] == 70.0
    assert last["nextToken"]["withoutGradients"]["value"] == 40.0
    assert (last["nextToken"]["mostFrequent"]["value"], last["nextToken"]["unigram"]["value"]) == (20.0, 10.0)


def test_the_page_tells_who_reads_what_it_knows_and_that_others_may_do_better(tmp_path: Path) -> None:
    page = page_of(with_leak(tmp_path))
    for expected in (
        "lyon is sent 80.0 % of the tokens of berlin; a linear probe reads 90.0 to 91.0 % of those",
        "of the last layer sent 70.0 % of the next tokens are read by a formula, 85.0 % by a probe",
        "of those read from their hidden states, by a probe; measured for berlin",
        "These attacks only; learned ones may do better.",
        "<b>linear probe</b> knows other text &lt;of&gt; the owner&#x27;s.",
        "One host that keeps its rows.",
        "layer 2: 50 % sent if it left; it stays at home",
        "60.0 % <small>59.0 to 61.0</small>",
        "Not measured for lyon, oslo, turin",
        *(text.replace("'", "&#x27;") for each in ATTACKS.values() for text in each.values()),
    ):
        assert expected in page


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": "pcmoe-leak/2"}, "version must be pcmoe-leak/1"),
        ({"participant": "lyon"}, "participant must be berlin"),
        ({"measurements": []}, "one or more"),
        ({"measurements": [{"weights": "x"}]}, "it has no host"),
        ({"adversaryKnows": {"x": "a\nb"}}, "x must be printable text"),
        ({"limits": 1}, "limits must be a list"),
    ],
)
def test_a_measurement_that_is_none_is_an_error_that_names_the_file(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=rf"berlin/leak\.json: is no measured leak: .*{told}"):
        write_report(with_leak(tmp_path, **changes))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("read", {"value": 1.5, "low": 0, "high": 1}, "value must be a number from 0 to 1"),
        ("attack", "magic", "attack must be one of linear probe, closed form"),
        ("layer", -1, "layer must be a whole number"),
    ],
)
def test_a_reading_that_is_none_is_an_error_that_says_what_it_must_be(
    tmp_path: Path, key: str, value: Any, told: str
) -> None:
    given = leak()
    given["measurements"][1]["readings"][0][key] = value
    with pytest.raises(UsageError, match=told):
        write_report(with_leak(tmp_path, measurements=given["measurements"]))


def test_text_that_is_no_measurement_is_never_quoted(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "oslo" / "leak.json").write_text("the text of a record")
    with pytest.raises(UsageError, match=r"oslo/leak\.json: is no measured leak: not valid JSON") as told:
        write_report(folder)
    assert "record" not in str(told.value)


# How the models write


def test_without_prompts_nothing_is_said_of_writing(tmp_path: Path) -> None:
    assert "What the model writes" not in page_of(make_run(tmp_path))


def test_continuations_are_shown_escaped_with_their_lines_and_a_warning(tmp_path: Path) -> None:
    said = {"prompt": "Once <b>", "base": "one\n two\u202e\x1b", "consortium": "<script>x</script>"}
    page = page_of(with_texts(tmp_path, {"lyon": said, "stranger": said}, round=4))
    assert "<dt>trained together, after round 4</dt>" in page
    assert "Once &lt;b&gt;" in page and "one\n two\ufffd\ufffd" in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page and "<script" not in page
    assert "A continuation may repeat text that was trained on" in page
    assert "stranger" not in page


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"lyon": {"prompt": "secret words", "base": "x"}}, "it has no consortium"),
        ({"lyon": {"prompt": 1, "base": "x", "consortium": "x"}}, "organisations.lyon.prompt must be text"),
        (["secret words"], "organisations must be an object"),
    ],
)
def test_continuations_that_are_none_are_an_error_that_quotes_nothing(
    tmp_path: Path, given: Any, told: str
) -> None:
    with pytest.raises(UsageError, match=rf"continuations\.json: can't be used: {told}") as found:
        write_report(with_texts(tmp_path, given))
    assert "secret" not in str(found.value)


# All of it


def full(folder: Path) -> Path:
    """A run with all that a report may show."""
    made = with_baselines(folder)
    (made / "berlin" / "leak.json").write_text(json.dumps(leak()))
    text = {"prompt": "a prompt", "base": "goes on", "consortium": "goes on otherwise"}
    (made / "continuations.json").write_text(json.dumps({"organisations": dict.fromkeys(NAMES, text)}))
    return made


def test_a_page_with_all_of_it_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    parser = Loads()
    parser.feed(page_of(full(tmp_path)).replace("/>", ">"))
    assert (parser.found, parser.open) == ([], [])


def test_the_page_has_a_section_for_each_of_its_readers(tmp_path: Path) -> None:
    page = page_of(full(tmp_path))
    places = [page.index(f'<section id="{name}">') for name in ("pays", "work", "privacy")]
    assert places == sorted(places)
    assert [page.index(title) > places[number] for number, title in enumerate(
        ("Together, or alone?", "By phase", "How much could be read")
    )] == [True] * 3  # fmt: skip
    assert page.count('<a class="card" href="#') == 3


def test_every_figure_of_it_has_a_reason_to_leave(tmp_path: Path) -> None:
    written = json.loads(write_report(full(tmp_path)).data.read_text())
    found = {OPEN_FIELDS.sub(rf"\1.{ANY}", path) for path in paths(written, NAMES)}
    assert unexplained(found, REPORT, "report.json") == []


def test_dots_have_shapes_of_their_own_and_keys_that_show_them() -> None:
    rows = [
        DotRow(
            label="<x>",
            dots=[Dot(value=1.0, style="m-union", low=0.9, high=1.1), Dot(value=None, style="m-probe")],
        )
    ]
    chart = dot_chart("a title", rows, "nats")
    assert "&lt;x&gt;" in chart and ">nats<" in chart and "<title>a title</title>" in chart
    assert chart.count("mark-ring") == 1 and "mark-square" not in chart
    assert 'class="interval m-union"' in chart
    assert "mark-ring" in marks({"m-union": "one model"}) and "one model" in marks({"m-union": "one model"})


def test_a_chart_of_no_dots_is_still_one() -> None:
    assert "nan" not in dot_chart(
        "t", [DotRow(label="a", dots=[Dot(value=float("nan"), style="m-union")])], "x"
    )
    assert dot_chart("t", [], "x").endswith("</svg>")


def test_a_range_of_one_value_is_that_value() -> None:
    assert (spread([], "{:.1f}"), spread([1, 1], "{:.1f}"), spread([2, 1], "{:.1f}")) == (
        "–",
        "1.0",
        "1.0 to 2.0",
    )
