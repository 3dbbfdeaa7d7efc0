"""Times as the Kubernetes API writes them."""

from datetime import datetime


def time_of(text: str) -> datetime | None:
    """The time that is written there, or None."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def moment(at: datetime, precision: str) -> str:
    """A UTC time as it is written, to the `seconds`, `milliseconds` or `microseconds`."""
    return at.isoformat(timespec=precision).replace("+00:00", "Z")
