"""The report: figures from what nodes wrote, and a page that loads nothing."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.builders import OLMOE, architecture, manifest
from tests.unit.fake_node import round_record
from typer.testing import CliRunner

from pcmoe_operator.cli import app
from pcmoe_operator.errors import UsageError
from pcmoe_operator.report import write_report
from pcmoe_operator.report.charts import (
    MAX_POINTS,
    Line,
    Scale,
    css_class,
    line_chart,
    stacked_bar,
    thinned,
    ticks,
)
from pcmoe_operator.report.read import read_rounds

NAMES = ("berlin", "lyon", "oslo", "turin")
OVERRIDES: dict[str, Any] = {"agreement.training.rounds": 4, "agreement.experts.localLayers.atEnd": 0}


def make_run(folder: Path, rounds: int = 5, **overrides: Any) -> Path:
    """A run's folder as four nodes left it."""
    text = manifest(NAMES, OVERRIDES | overrides, config=architecture(OLMOE, num_experts=8))
    folder.mkdir(exist_ok=True)
    (folder / "manifest.yaml").write_text(yaml.safe_dump(text))
    record = {"cores": 2, "threads": 1, "software": {"Python": "3.11", "torch": "2.13"}}
    (folder / "run.json").write_text(json.dumps(record))
    for name in NAMES:
        log = folder / name / "log"
        log.mkdir(parents=True)
        peers = [peer for peer in NAMES if peer != name]
        lines = [json.dumps(round_record(number, peers)) + "\n" for number in range(rounds)]
        (log / "rounds.jsonl").write_text("".join(lines))
    return folder


def figures(folder: Path) -> dict[str, Any]:
    """The figures of a run's report, as written."""
    found = json.loads(write_report(folder).data.read_text())
    assert isinstance(found, dict)
    return found


def test_the_first_and_last_held_out_loss_and_their_change_are_told(tmp_path: Path) -> None:
    loss = figures(make_run(tmp_path))["loss"]["lyon"]
    assert (loss["firstHeldOut"], loss["lastHeldOut"]) == (3.2, pytest.approx(2.8))
    assert loss["change"] == pytest.approx(-0.4)
    assert loss["changePercent"] == -12.5
    assert [r["round"] for r in loss["rounds"]] == [0, 1, 2, 3, 4]
    assert loss["rounds"][0]["training"] is None


def test_memory_is_compared_with_one_process_that_holds_the_whole_model(tmp_path: Path) -> None:
    memory = figures(make_run(tmp_path))["memory"]
    hidden, width, layers, experts = 32, 16, 3, 8
    expert_bytes = layers * experts * 3 * hidden * width * 4
    assert memory["whole"]["tensors"]["experts"] == expert_bytes
    parameters = memory["basis"]["parameters"]
    assert memory["whole"]["total"] == 16 * parameters
    assert memory["basis"]["expertSharePercent"] == round(100 * expert_bytes / (4 * parameters), 1)
    own = memory["participants"]["berlin"]
    assert own["total"] == 12 * 2**20
    assert own["savingPercent"] == pytest.approx(100 - 100 * own["total"] / memory["whole"]["total"], abs=0.1)
    assert own["peakAboveBaseline"] == 220 * 2**20


def test_local_layers_count_as_experts_that_are_not_shared_out(tmp_path: Path) -> None:
    overrides = {"agreement.experts.localLayers.atEnd": 1}
    basis = figures(make_run(tmp_path, **overrides))["memory"]["basis"]
    assert basis["sharedOutPercent"] == pytest.approx(basis["expertSharePercent"] * 2 / 3, abs=0.1)


def test_traffic_is_summed_per_pair_and_over_all(tmp_path: Path) -> None:
    traffic = figures(make_run(tmp_path))["traffic"]
    assert traffic["bytesSent"]["berlin"] == dict.fromkeys(("lyon", "oslo", "turin"), 5 * 409600)
    assert traffic["totalBytes"] == 12 * 5 * 409600
    assert traffic["bytesPerTrainedToken"] == round(traffic["totalBytes"] / (4 * 4 * 1280), 1)


def test_answers_of_each_partner_are_averaged_over_all_rounds(tmp_path: Path) -> None:
    waits = figures(make_run(tmp_path))["traffic"]["replyMilliseconds"]
    assert waits["berlin"] == dict.fromkeys(("lyon", "oslo", "turin"), 12.5)


def test_time_is_summed_by_phase(tmp_path: Path) -> None:
    time = figures(make_run(tmp_path))["time"]["oslo"]
    assert time["forward"] == pytest.approx(1.5)
    assert time["checkpoint"] == pytest.approx(0.5)


class Loads(HTMLParser):
    """Collects everything in a page that would make a browser load or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # A place in the page itself is nothing to load.
        names = {name for name, value in attrs if name != "href" or not (value or "").startswith("#")}
        if tag in ("script", "link", "img", "iframe", "object", "base") or names & {"src", "href", "onload"}:
            self.found.append(tag)
        if tag not in ("meta", "line", "circle", "polyline", "polygon"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_loads_nothing_runs_nothing_and_is_well_formed(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path)).page.read_text()
    parser = Loads()
    parser.feed(page.replace("/>", ">"))
    assert parser.found == []
    assert parser.open == []
    assert not re.search(r"https?:|url\(|@import", page)
    assert "Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline';" in page


def test_the_page_tells_figures_and_what_was_sent_in_plain_words(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path)).page.read_text()
    for expected in (
        "4 of 4",
        "−0.400 (−12.5 %)",
        "text-equivalent to whoever receives them",
        "was not sent to anybody",
        "4 of 4 rounds.",
        "prefers-color-scheme: dark",
        "@media print",
    ):
        assert expected in page


def test_names_are_escaped_wherever_they_stand() -> None:
    sneaky = '"><script>x</script>'
    line = Line(label=sneaky, style="held", points=[(0, 1.0)])
    chart = line_chart(sneaky, [line], Scale.of([line]), sneaky)
    bar = stacked_bar(sneaky, {sneaky: 1.0}, 1.0, sneaky)
    assert "<script" not in chart + bar
    assert css_class(sneaky).removeprefix("k-").isalnum()


def test_a_run_that_has_not_begun_still_gets_a_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path, rounds=0)
    found = figures(folder)
    assert found["roundsDone"] == 0
    assert found["memory"]["participants"]["berlin"] is None
    assert "not finished" in (folder / "report.html").read_text()


def test_a_run_whose_loss_rose_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    path = folder / "berlin" / "log" / "rounds.jsonl"
    worse = round_record(4, ["lyon"]) | {"heldOutLoss": 3.6}
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]) + json.dumps(worse) + "\n")
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert "3 of 4" in page
    assert '<span class="bad">+0.400 (+12.5 %)</span>' in page


def test_rounds_that_a_resumed_run_did_again_count_once(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    numbers = [0, 1, 2, 3, 2, 3, 4]
    path.write_text("".join(json.dumps(round_record(n, [])) + "\n" for n in numbers) + '{"round": 5, "st')
    assert [r.round for r in read_rounds(path)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "nonsense",
        '{"round": "x"}',
        json.dumps(round_record(1, []) | {"tokens": 10**400}),
        json.dumps(round_record(1, []) | {"tokens": True}),
        json.dumps(round_record(1, []) | {"seconds": float("nan")}),
        json.dumps(round_record(1, []) | {"seconds": -1}),
        json.dumps(round_record(1, []) | {"trainLoss": "3"}),
        json.dumps(round_record(1, []) | {"remoteTokenShare": 1.5}),
        json.dumps(round_record(1, []) | {"secondsByPhase": {"\n": 1}}),
        json.dumps(round_record(1, []) | {"secondsByPhase": {str(n): 1 for n in range(65)}}),
        json.dumps(round_record(1, []) | {"traffic": []}),
        "[" * 100_000,
    ],
)
def test_a_broken_line_is_an_error_that_names_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_text(json.dumps(round_record(0, [])) + f"\n{line}\n")
    with pytest.raises(UsageError, match=r"rounds\.jsonl: line 2 is no round"):
        read_rounds(path)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no run"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("low", "high", "about", "expected"),
    [(0, 20, 5, [0, 5, 10, 15, 20]), (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]), (1.9, 3.1, 4, [2, 2.5, 3])],
)
def test_axis_ticks_are_round_numbers(low: float, high: float, about: int, expected: list[float]) -> None:
    assert ticks(low, high, about) == pytest.approx(expected)


def test_a_chart_of_one_point_or_of_equal_values_has_a_scale() -> None:
    flat = Line(label="a", style="held", points=[(0, 2.0), (1, 2.0), (2, float("nan"))])
    scale = Scale.of([flat])
    assert scale.y_min < 2.0 < scale.y_max
    assert "nan" not in line_chart("t", [flat], scale, "round")
    assert Scale.of([]).y_max > Scale.of([]).y_min


def test_a_line_is_never_quoted_in_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_text(json.dumps(round_record(1, []) | {"trainLoss": "the text of a record"}) + "\n")
    with pytest.raises(UsageError) as told:
        read_rounds(path)
    assert "trainLoss must be a number or null" in str(told.value)
    assert "text of a record" not in str(told.value)


def rewrite(folder: Path, name: str, **more: Any) -> None:
    """Put more into every record of a participant."""
    path = folder / name / "log" / "rounds.jsonl"
    lines = [json.loads(line) | more for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def tell(folder: Path, name: str, *events: tuple[float, str, str]) -> None:
    """Write a participant's events."""
    log = folder / name / "log"
    log.mkdir(parents=True, exist_ok=True)
    lines = [{"time": time, "kind": kind, "message": message} for time, kind, message in events]
    (log / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_gpu_hours_are_seconds_times_gpus_and_unknown_where_nobody_says(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    rewrite(folder, "berlin", gpus=1, seconds=720.0)
    rewrite(folder, "lyon", gpus=0)
    found = figures(folder)["gpuHours"]
    assert found["participants"]["berlin"] == {"trained": 1.0, "held": None}
    assert found["participants"]["lyon"]["trained"] == 0.0
    assert found["participants"]["oslo"]["trained"] is None
    assert (found["trained"], found["held"]) == (1.0, None)
    page = (folder / "report.html").read_text()
    assert "GPU-hours trained" in page and "1.0 GPU-hours" in page


def test_without_gpus_and_sizes_nothing_is_said_of_them(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path)).page.read_text()
    assert "GPU-hours" not in page
    assert "What happened" not in page


def test_checkpoints_and_the_share_sent_out_are_told(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    rewrite(folder, "oslo", checkpointBytes=4_000_000, checkpointSeconds=1.5, remoteTokenShare=0.75)
    assert figures(folder)["machines"]["oslo"] == {
        "gpus": None,
        "checkpointBytes": 4_000_000,
        "checkpointSeconds": 1.5,
        "remoteTokenShare": 0.75,
    }
    page = (folder / "report.html").read_text()
    assert "<td>4.0 MB</td><td>1.50 s</td><td>75.0 %</td>" in page


def test_phases_are_named_as_old_and_new_nodes_call_them(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    rewrite(folder, "oslo", secondsByPhase={"exchange_wait": 3.0, "host_compute": 1.0, "unheard_of": 1.0})
    page = write_report(folder).page.read_text()
    assert page.count("waiting for the network") == 4, "legend and table, under the old name and the new one"
    assert '<i class="k-exchangewait" style="width:60.000%"' in page
    assert "unheard_of" in page


def test_what_happened_is_one_list_by_time_with_who_told_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    left = (1.7e9 + 20, "ViewLeft", "view 1: turin fell silent for 30 s")
    tell(folder, "berlin", (1.7e9, "ViewEntered", "view 1 begins after round 0"), left)
    tell(folder, "lyon", (1.7e9 + 21, *left[1:]))
    tell(
        folder,
        "coordinator",
        (1.7e9 + 1, "Committed", "round 1 is committed"),
        (1.7e9 - 1, "ViewFormed", "x"),
    )
    events = figures(folder)["events"]
    assert [(e["who"], e["kind"]) for e in events] == [
        ("coordinator", "ViewFormed"),
        ("berlin", "ViewEntered"),
        ("berlin", "ViewLeft"),
        ("lyon", "ViewLeft"),
    ]
    assert [e["warning"] for e in events] == [False, False, True, True]
    page = (folder / "report.html").read_text()
    assert "<time>22:13:40</time><span>berlin, lyon</span>" in page
    assert page.count("fell silent") == 1


def test_more_events_than_anybody_reads_are_in_the_figures_only(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    tell(folder, "berlin", *[(1.7e9 + 10 * n, "ViewLeft", f"view {n}") for n in range(250)])
    assert len(figures(folder)["events"]) == 250
    page = (folder / "report.html").read_text()
    assert page.count("<time>") == 200
    assert "The first 50 are only in report.json" in page


def test_what_nodes_say_is_escaped_and_has_no_control_characters(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    tell(folder, "berlin", (1.7e9, "<b>x</b>", "<script>alert(1)</script> \u001b[31m \u202e \ud800 \n end"))
    page = write_report(folder).page.read_text()
    assert "<script" not in page and "<b>x</b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; [31m end" in page


@pytest.mark.parametrize(
    "line", ["{}", '{"time": "now", "kind": "a", "message": "b"}', '{"time": 1, "kind": 2}']
)
def test_a_wrong_event_is_an_error_that_names_file_and_line(tmp_path: Path, line: str) -> None:
    folder = make_run(tmp_path)
    (folder / "oslo" / "log" / "events.jsonl").write_text(line + "\n")
    with pytest.raises(UsageError, match=r"oslo/log/events\.jsonl: line 1 is no event"):
        write_report(folder)


def test_a_loss_that_overflowed_leaves_figures_that_are_json(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    rewrite(folder, "berlin", heldOutLoss=float("nan"), trainLoss=float("inf"))
    found = json.loads(write_report(folder).data.read_text(), parse_constant=pytest.fail)
    assert found["loss"]["berlin"]["lastHeldOut"] is None
    assert found["loss"]["berlin"]["change"] is None
    rewrite(folder, "berlin", heldOutLoss=1e-300)
    assert figures(folder)["loss"]["berlin"]["changePercent"] == 0


def test_a_line_of_very_many_points_is_thinned_and_keeps_its_end() -> None:
    points = [(float(n), 0.0) for n in range(10 * MAX_POINTS + 7)]
    few = thinned(points)
    assert len(few) <= MAX_POINTS + 1
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert thinned(points[:9]) == points[:9]


def test_the_report_may_be_written_elsewhere_and_printed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    other = tmp_path / "a" / "b"
    done = CliRunner().invoke(app, ["report", str(folder), "--output", str(other)])
    assert done.exit_code == 0
    assert done.stdout.startswith("Held-out loss fell at 4 of 4 organisations, by 12.5 %.\n")
    assert f"Report: {other / 'report.html'}\n" in done.stdout
    assert (other / "report.html").exists() and not (folder / "report.html").exists()
    printed = CliRunner().invoke(app, ["report", str(folder), "--json"])
    assert json.loads(printed.stdout) == json.loads((other / "report.json").read_text())
    assert not (folder / "report.json").exists()


@pytest.mark.parametrize("arguments", [[], ["here", "--cluster", "there"]])
def test_a_folder_or_a_cluster_is_named_not_both(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["report", *arguments])
    assert isinstance(done.exception, UsageError)
