"""A cluster with a real node, for all tests of this folder; only as `make e2e` runs them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.plane import ControlPlane
from tests.e2e import sandbox
from tests.e2e.machine import Machine
from tests.e2e.phases import phase


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything lies."""
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def plane(place: Path) -> Iterator[ControlPlane]:
    """The control plane."""
    sandbox.enter()
    with ControlPlane(place / "plane", address=sandbox.ADDRESS, pod_range=sandbox.POD_RANGE) as started:
        yield started


@pytest.fixture(scope="session")
def machine(plane: ControlPlane, place: Path) -> Iterator[Machine]:
    """Its one node."""
    with sandbox.control_group() as group:
        with phase("a node with both images"):
            started = Machine(
                plane, place / "machine", Path(os.environ["PCMOE_E2E_IMAGES"]), group
            ).__enter__()
        try:
            yield started
        finally:
            started.__exit__(None, None, None)
