"""Dashboards are as their generator writes them, complete, and small enough to be handed around."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from grafana_foundation_sdk.models.dashboard import Dashboard
from tools.dashboards.__main__ import BOARDS, FOLDER, stale
from tools.dashboards.queries import PHASES

from pcmoe_node import figures

LIMIT = 200_000
"""Bytes of a file; a ConfigMap holds a million, and there are others in it."""
COLUMNS = 24


def board(name: str) -> dict[str, Any]:
    """A dashboard as it lies in the chart."""
    found: dict[str, Any] = json.loads((FOLDER / name).read_text())
    return found


def panels(name: str) -> Iterator[dict[str, Any]]:
    """Its panels, without headings."""
    return (panel for panel in board(name)["panels"] if panel["type"] != "row")


def test_files_are_what_the_generator_writes() -> None:
    assert stale() == [], "run: python -m tools.dashboards"


@pytest.mark.parametrize("name", BOARDS)
def test_grafanas_own_types_read_a_file_and_lose_nothing(name: str) -> None:
    def plain(value: Any) -> Any:
        return json.loads(json.dumps(value, default=lambda each: each.to_json()))

    text = json.loads((FOLDER / name).read_text())
    assert plain(Dashboard.from_json(text)) == text


@pytest.mark.parametrize("name", BOARDS)
def test_a_file_is_small(name: str) -> None:
    assert (FOLDER / name).stat().st_size < LIMIT


def test_addresses_are_stable_and_titles_tell_them_apart() -> None:
    boards = [board(name) for name in BOARDS]
    assert [each["uid"] for each in boards] == ["pcmoe-consortium", "pcmoe-participant", "pcmoe-operator"]
    assert len({each["title"] for each in boards}) == len(boards)


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_says_what_it_shows_in_which_unit(name: str) -> None:
    for panel in panels(name):
        assert len(panel["description"]) > 10 and panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        assert all(target["legendFormat"] or panel["type"] == "table" for target in panel["targets"])


@pytest.mark.parametrize("name", BOARDS)
def test_no_two_panels_have_one_title_number_or_place(name: str) -> None:
    numbers = [panel["id"] for panel in board(name)["panels"]]
    assert len(numbers) == len(set(numbers))
    titles = [panel["title"] for panel in panels(name)]
    assert len(titles) == len(set(titles))
    taken: set[tuple[int, int]] = set()
    for panel in board(name)["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", BOARDS)
def test_queries_ask_only_for_what_is_chosen(name: str) -> None:
    made = board(name)
    known = {each["name"] for each in made["templating"]["list"]} | {"__rate_interval"}
    for panel in panels(name):
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= known
            selectors = re.findall(r"\{([^}]*)\}", target["expr"])
            assert selectors and all('namespace="$namespace"' in each for each in selectors), panel["title"]


def test_every_phase_of_a_node_has_its_name_and_colour() -> None:
    assert set(PHASES) == set(figures.PHASES)
