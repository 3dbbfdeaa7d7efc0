"""pytest fixtures: a control plane per worker, a namespace per test. A folder's conftest.py imports them from here.

With `$KUBECONFIG_FOR_TESTS` the cluster it leads to takes the place of our own, with all rights; what tests make there
is in namespaces that are deleted. Tests that need fake nodes, the audit log or other users ask for `own_plane`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster import build
from tests.cluster.cluster import Cluster
from tests.cluster.errors import BuildError
from tests.cluster.plane import ControlPlane

FAKE_NODES = 4
CRD = Path(__file__).parents[2] / "manifests" / "crd.yaml"
_FAILED = pytest.StashKey[BuildError]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build before the first test: the first time takes minutes, for which no test's timeout should have to allow."""
    asked = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    given = os.environ.get("KUBECONFIG_FOR_TESTS")
    wanted: tuple[str, ...] = build.MONITORING if "monitoring_programs" in asked else ()
    if "plane_programs" in asked or ("plane" in asked and not given):
        wanted += build.PLANE
    elif "plane" in asked:
        wanted += ("kubectl",)
    if wanted and build.missing(wanted):
        capture = session.config.pluginmanager.getplugin("capturemanager")
        try:
            with capture.global_and_fixture_disabled():
                build.ensure(*wanted)
        except BuildError as error:
            session.config.stash[_FAILED] = error


@pytest.fixture(scope="session")
def plane_programs(request: pytest.FixtureRequest) -> None:
    """All that a control plane is made of, built."""
    _raise_what_failed(request)


@pytest.fixture(scope="session")
def own_plane(plane_programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of our own with the CRD and four fake nodes of 8 GPUs, started for the first test that asks."""
    with ControlPlane(tmp_path_factory.mktemp("plane"), fake_nodes=FAKE_NODES, definitions=(CRD,)) as plane:
        yield plane


@pytest.fixture(scope="session")
def plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster that tests run on."""
    if given := os.environ.get("KUBECONFIG_FOR_TESTS"):
        return Cluster(Path(given).absolute(), tmp_path_factory.mktemp("cluster"))
    own: ControlPlane = request.getfixturevalue("own_plane")
    return own


@pytest.fixture(scope="session")
def monitoring_programs(request: pytest.FixtureRequest) -> dict[str, Path]:
    """Where `prometheus` and `promtool` lie."""
    _raise_what_failed(request)
    return build.ensure(*build.MONITORING)


@pytest.fixture
def namespace(plane: Cluster) -> Iterator[str]:
    """A namespace for one test."""
    with plane.namespace() as name:
        yield name


def _raise_what_failed(request: pytest.FixtureRequest) -> None:
    if (error := request.config.stash.get(_FAILED, None)) is not None:
        raise error
