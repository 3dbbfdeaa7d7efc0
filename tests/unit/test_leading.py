"""How long changes are gathered before a look."""

import pytest

from pcmoe_operator.leading import burst_seconds


@pytest.mark.parametrize(
    ("consortia", "seconds"), [(0, 0.2), (1, 0.2), (50, 0.2), (125, 0.5), (250, 1.0), (5000, 1.0)]
)
def test_more_changes_are_waited_for_where_there_are_many_consortia(consortia: int, seconds: float) -> None:
    assert burst_seconds(consortia) == seconds
