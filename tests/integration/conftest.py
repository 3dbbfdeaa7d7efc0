"""What integration tests run on."""

from tests.cluster.fixtures import namespace, own_plane, plane, pytest_collection_finish

__all__ = ["namespace", "own_plane", "plane", "pytest_collection_finish"]
