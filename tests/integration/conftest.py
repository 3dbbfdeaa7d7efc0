"""What integration tests run on."""

import signal

from tests.cluster.fixtures import namespace, own_plane, plane, plane_programs, pytest_collection_finish

__all__ = ["namespace", "own_plane", "plane", "plane_programs", "pytest_collection_finish"]

# A shell that starts tests in the background has SIGINT ignored, and so would have whatever tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
