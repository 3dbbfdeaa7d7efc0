"""What can go wrong with the control plane for tests. Each message says what was tried and what came of it."""


class ClusterError(Exception):
    """Root of everything below."""


class BuildError(ClusterError):
    """A program could not be built, or there is nothing to build it with."""


class ProcessError(ClusterError):
    """A process of the control plane ended, or was not ready in time; ends with the tail of its log."""


class WaitError(ClusterError):
    """Something that was waited for did not come."""


class KubectlError(ClusterError):
    """kubectl ended with an error; `stderr` and `stdout` are what it said."""

    def __init__(self, command: str, code: int, stderr: str, stdout: str = "") -> None:
        super().__init__(f"{command} ended with {code}:\n{stderr}")
        self.stderr = stderr
        self.stdout = stdout
