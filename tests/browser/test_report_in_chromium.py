"""The report in a real browser: it asks the network for nothing, and nothing of it is cut, hidden or without a name."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_report_beside import full

from pcmoe_operator.report import write_report

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome")
DEADLINE_SECONDS = 60.0
PAGE = "null"
"""What Chromium's log of the network calls a page from a file; its own requests are of no origin."""
LOOK = """
<script>
const box = each => each.getBoundingClientRect();
const inside = (a, b) => a.left > b.left - 1 && a.right < b.right + 1 && a.top > b.top - 1 && a.bottom < b.bottom + 1;
const meet = (a, b) => a.left + 1 < b.right && b.left + 1 < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom;
const every = (what, of = document) => [...of.querySelectorAll(what)];
const charts = every('svg[role=img]');
const found = {
  width: innerWidth,
  wider: document.documentElement.scrollWidth - innerWidth,
  charts: charts.length,
  cut: charts.flatMap(c => every('text', c).filter(t => !inside(box(t), box(c))).map(t => t.textContent)),
  overlapping: charts.flatMap(c => { const all = every('text', c); return all.flatMap((a, i) =>
    all.slice(i + 1).filter(b => meet(box(a), box(b))).map(b => a.textContent + ' / ' + b.textContent)); }),
  smallest: Math.min(...charts.flatMap(c => every('text', c).map(t => box(t).height))),
  spilled: every('.card:not(.scroll)').flatMap(c => every('*', c).filter(e => !e.closest('svg') &&
    !e.closest('.scroll') && box(e).right > box(c).right + 1).map(e => e.textContent.slice(0, 40))),
  unreachable: every('.card.scroll').filter(c => c.scrollWidth > c.clientWidth &&
    getComputedStyle(c).overflowX !== 'auto').length,
  unnamed: charts.filter(c => !c.getAttribute('aria-label') || !c.querySelector('title')).length,
  background: getComputedStyle(document.body).backgroundColor,
  sections: every('main > section').map(s => s.id),
};
parent.document.documentElement.dataset.found = JSON.stringify(found);
</script>
"""


def browse(page: Path, *arguments: str) -> str:
    """Open a file in a browser without a window or a past; what it prints."""
    [browser, *_] = [path for path in map(shutil.which, NAMES) if path]
    command = [
        browser,
        "--headless",
        "--no-sandbox",  # root, in containers
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={page.parent / 'profile'}",
        *arguments,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE_SECONDS, check=True)
    return done.stdout.decode("utf-8")


def looked_at(page: Path, width: int, *arguments: str) -> dict[str, Any]:
    """What a page looks like at this width: in a frame, for windows have a least width; with a script."""
    text = re.sub(r"<meta http-equiv=.*?>", "", page.read_text("utf-8")).replace("</body>", LOOK + "</body>")
    frame = page.parent / "frame.html"
    frame.write_text(
        '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{html.escape(text)}"></iframe>',
        "utf-8",
    )
    dom = browse(frame, "--dump-dom", "--hide-scrollbars", *arguments)
    [told] = re.findall(r'<html data-found="([^"]*)"', dom)
    found = json.loads(html.unescape(told))
    assert isinstance(found, dict)
    return found


def asked_for(page: Path) -> list[str]:
    """Every address that the page made the browser ask for, of any kind."""
    log = page.parent / "network.json"
    browse(page, f"--log-net-log={log}", "--net-log-capture-mode=Everything", "--dump-dom")
    events = json.loads(log.read_text("utf-8"))["events"]
    given: list[Mapping[str, Any]] = [event.get("params", {}) for event in events]
    return [str(each["url"]) for each in given if each.get("initiator") == PAGE]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all that there may be in it."""
    return write_report(full(tmp_path_factory.mktemp("run"))).page


def test_a_page_that_loads_something_is_noticed(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<img src="http://127.0.0.1:9/a.png"><link rel="stylesheet" href="http://localhost:9/b.css">'
    )
    assert {"http://127.0.0.1:9/a.png", "http://localhost:9/b.css"} <= set(asked_for(bad))


def test_the_report_opens_from_a_file_and_asks_for_nothing(page: Path, tmp_path: Path) -> None:
    assert asked_for(page) == []
    free = tmp_path / "free.html"
    free.write_text(re.sub(r"<meta http-equiv=.*?>", "", page.read_text("utf-8")), "utf-8")
    assert asked_for(free) == [], "nor where the page's own policy doesn't keep it from asking"


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_cut_hidden_or_on_top_of_something_else(page: Path, width: int) -> None:
    found = looked_at(page, width)
    assert found["width"] == width
    assert found["wider"] <= 0
    assert found["charts"] == 4 + 1 + 2
    assert (found["cut"], found["overlapping"], found["spilled"]) == ([], [], [])
    assert (found["unreachable"], found["unnamed"]) == (0, 0)
    assert found["smallest"] > 11, "pixels, of the height of a line of text"
    assert found["sections"] == ["pays", "work", "privacy"]


def test_it_is_light_or_dark_as_the_reader_wants_it(page: Path) -> None:
    def background(scheme: int) -> list[int]:
        shown = looked_at(page, 1280, f"--blink-settings=preferredColorScheme={scheme}")["background"]
        return [int(each) for each in re.findall(r"\d+", shown)]

    assert max(background(0)) < 60, "dark"
    assert min(background(1)) > 230, "light"


def test_every_chart_has_axes_units_and_a_legend(page: Path) -> None:
    text = page.read_text("utf-8")
    charts = re.findall(r'<svg viewBox="[^"]*" role="img".*?</svg>', text, re.DOTALL)
    for chart in charts:
        labels = re.findall(r"<text[^>]*>([^<]*)</text>", chart)
        assert any(unit in label for label in labels for unit in ("nats per token", "% of tokens"))
        assert sum(re.fullmatch(r"[\d.]+", label) is not None for label in labels) >= 3
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    dots = [each for each in figures if "mark-" in each]
    assert len(dots) == 3 and all('<ul class="legend">' in each for each in dots)
    lines = text.index("<polyline")
    assert 0 < lines - text.rindex('<ul class="legend">', 0, lines) < 2500


def test_it_is_printed(page: Path) -> None:
    made = page.parent / "report.pdf"
    browse(page, f"--print-to-pdf={made}", "--no-pdf-header-footer")
    printed = made.read_bytes()
    assert printed.startswith(b"%PDF-")
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 20
