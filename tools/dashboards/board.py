"""The few kinds of panels that the dashboards have, on Grafana's own builders, which know every field and its type.

The builders are those for Grafana 10.1, the oldest that is looked after; newer ones read what they write.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "pcmoe"
GOOD, FAIR, BAD, NONE = "green", "orange", "red", "text"
"""Colours of Grafana's own palette, which follow its light and dark theme."""
Queries = Mapping[str, str]
"""Legend -> expression."""
Steps = Sequence[tuple[float | None, str]]
"""(from this value on, colour); the first has None."""
Names = Mapping[str, tuple[str, str]]
"""Value -> (word, colour)."""
Builder = timeseries.Panel | stat.Panel | statetimeline.Panel | table.Panel


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """How values are shown."""

    unit: str
    """As Grafana calls it."""
    least: float | None = None
    """Where the axis begins; None: by itself."""
    most: float | None = None
    limits: Steps = ()
    names: Names | None = None
    """What is said instead of a value."""
    none: str = "–"
    """What is said where there is no value."""
    colours: Mapping[str, str] = field(default_factory=dict)
    """Of some lines, by legend."""
    legend_only: bool = False
    """What is shown of a number is its legend."""


class Board:
    """One dashboard, filled from left to right and from top to bottom."""

    def __init__(self, uid: str, title: str, description: str) -> None:
        self._count = 0
        self._board = (
            builders.Dashboard(title)
            .uid(uid)
            .description(description)
            .tags([TAG])
            .editable()
            .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
            .time("now-6h", "now")
            .refresh("30s")
            .link(
                builders.DashboardLink("PC-MoE")
                .type(dashboard.DashboardLinkType.DASHBOARDS)
                .tags([TAG])
                .include_vars(True)
                .keep_time(True)
            )
            .with_variable(builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        )

    def variable(self, name: str, label: str, metric: str, several: bool = False) -> Self:
        """A variable whose values are those of a label; `several`: any number of them, all at first."""
        query = f"label_values({metric},{name})"
        made = (
            builders.QueryVariable(name)
            .label(label)
            .datasource(SOURCE)
            .query({"query": query, "refId": name})
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        )
        if several:
            made = made.multi(True).include_all(True).all_value(".*")
            made = made.current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
        self._board.with_variable(made)
        return self

    def row(self, title: str) -> Self:
        """What follows is below this heading."""
        self._count += 1
        self._board.with_row(builders.Row(title).id(self._count))
        return self

    def lines(
        self,
        title: str,
        description: str,
        queries: Queries,
        shown: Shown,
        *,
        width: int = 8,
        stacked: bool = False,
    ) -> Self:
        """Lines over time, or areas on top of each other; `limits` are drawn."""
        panel = (
            timeseries.Panel()
            .legend(
                common_builders.VizLegendOptions()
                .display_mode(common.LegendDisplayMode.LIST)
                .placement(common.LegendPlacement.BOTTOM)
                .show_legend(True)
            )
            .tooltip(
                common_builders.VizTooltipOptions()
                .mode(common.TooltipDisplayMode.MULTI)
                .sort(common.SortOrder.DESCENDING)
            )
            .fill_opacity(60 if stacked else 0)
        )
        for legend, colour in shown.colours.items():
            fixed = dashboard.DynamicConfigValue(
                id_val="color", value={"mode": "fixed", "fixedColor": colour}
            )
            panel = panel.override_by_name(legend, [fixed])
        if stacked:
            panel = panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
        if shown.least is not None:
            panel = panel.min(shown.least)
        if shown.most is not None:
            panel = panel.max(shown.most)
        if shown.limits:
            style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.DASHED)
            panel = panel.thresholds(_steps(shown.limits)).thresholds_style(style)
        return self._add(panel.unit(shown.unit), title, description, queries, width, 8)

    def numbers(
        self, title: str, description: str, queries: Queries, shown: Shown, *, width: int = 4
    ) -> Self:
        """The newest value of each query."""
        panel = (
            stat.Panel()
            .graph_mode(common.BigValueGraphMode.NONE)
            .color_mode(common.BigValueColorMode.VALUE)
            .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
            .thresholds(_steps(shown.limits or ((None, NONE),)))
            .no_value(shown.none)
        )
        if shown.names:
            panel = panel.mappings([_words(shown.names)])
        if shown.legend_only:
            panel = panel.text_mode(common.BigValueTextMode.NAME)
        return self._add(panel.unit(shown.unit), title, description, queries, width, 4)

    def states(
        self,
        title: str,
        description: str,
        queries: Queries,
        names: Names,
        *,
        width: int = 12,
    ) -> Self:
        """Bands over time."""
        panel = (
            statetimeline.Panel()
            .merge_values(True)
            .show_value(common.VisibilityMode.AUTO)
            .mappings([_words(names)])
            .legend(common_builders.VizLegendOptions().show_legend(False))
        )
        return self._add(panel.unit("none"), title, description, queries, width, 8)

    def rows(
        self, title: str, description: str, query: str, *, hidden: Sequence[str] = (), width: int = 12
    ) -> Self:
        """A table with a line for each series there is now; `hidden` labels are left out."""
        organise = dashboard.DataTransformerConfig(
            id_val="organize", options={"excludeByName": dict.fromkeys(hidden, True)}
        )
        panel = table.Panel().with_transformation(organise).unit("none").no_value("none")
        return self._add(panel, title, description, {"": query}, width, 8)

    def build(self) -> dashboard.Dashboard:
        """All of it."""
        return self._board.build()

    def _add(
        self, panel: Builder, title: str, description: str, queries: Queries, width: int, height: int
    ) -> Self:
        self._count += 1
        panel = panel.id(self._count).title(title).description(description).datasource(SOURCE)
        for letter, (legend, expression) in zip("ABCDEFGH", queries.items(), strict=False):
            query = prometheus.Dataquery().expr(expression).ref_id(letter).legend_format(legend)
            if isinstance(panel, table.Panel):
                query = query.instant().format(PromQueryFormat.TABLE)
            panel = panel.with_target(query.datasource(SOURCE))
        self._board.with_panel(panel.span(width).height(height))
        return self


def _steps(limits: Steps) -> builders.ThresholdsConfig:
    steps = [dashboard.Threshold(value=value, color=colour) for value, colour in limits]
    return builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)


def _words(names: Names) -> dashboard.ValueMap:
    results = {
        value: dashboard.ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, (text, colour)) in enumerate(names.items())
    }
    return dashboard.ValueMap(options=results)
