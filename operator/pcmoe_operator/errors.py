"""Every way the operator's side says no, and the exit code of the command that met it.

    OperatorError             70
    ├── ManifestError         64  a manifest breaks rules: every fault at once, each with path, value and rule
    ├── UsageError            64  a file, folder or option of a command can't be used
    └── RunError               –  a local run failed; carries the exit code of the node that failed first

The node's own errors and exit codes are in `pcmoe_node.errors`.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken rule. The message is a sentence that names field, value and rule."""

    path: str
    """Where: `spec.agreement.participants[1].name`."""
    value: object
    """What stands there; None if nothing does."""
    rule: str
    """Id of the rule, such as `in-flight-within-step`."""
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message} [{self.rule}]"


class OperatorError(Exception):
    """Something the user can put right. The message says what."""

    exit_code: int = 70


class ManifestError(OperatorError):
    """A manifest that breaks rules; `faults` has all of them, in the order of the manifest."""

    exit_code = 64

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        lines = [str(fault) for fault in self.faults]
        super().__init__(
            lines[0] if len(lines) == 1 else "\n  ".join([f"the manifest breaks {len(lines)} rules:", *lines])
        )


class UsageError(OperatorError):
    """A file, folder or option that can't be used: which, and why."""

    exit_code = 64


class RunError(OperatorError):
    """A local run that failed; `exit_code` is the one of the node that failed first."""

    def __init__(self, message: str, exit_code: int = 70) -> None:
        super().__init__(message)
        self.exit_code = exit_code
