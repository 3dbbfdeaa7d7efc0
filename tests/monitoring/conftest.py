"""What monitoring tests run on."""

from pathlib import Path

import pytest
from tests.cluster.fixtures import (
    monitoring_programs,
    namespace,
    own_plane,
    plane,
    plane_programs,
    pytest_collection_finish,
)

__all__ = [
    "monitoring_programs",
    "namespace",
    "own_plane",
    "plane_programs",
    "plane",
    "pytest_collection_finish",
]


@pytest.fixture(scope="session")
def promtool(monitoring_programs: dict[str, Path]) -> Path:
    """Prometheus' own judge of rules and metrics."""
    return monitoring_programs["promtool"]
