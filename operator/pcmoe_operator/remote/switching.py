"""Suspend and resume: what will happen, and when it has."""

from collections.abc import Callable

from pcmoe_operator.answers import items, part, text_at, whole
from pcmoe_operator.remote.access import Access
from pcmoe_operator.remote.live import FAILED, ended
from pcmoe_operator.remote.session import Object
from pcmoe_operator.remote.summary import standing, summary


async def switch(access: Access, name: str, *, suspend: bool) -> tuple[Object, bool]:
    """Set `spec.suspend`; gives back the consortium, and whether that was a change."""
    before = await access.consortium(name)
    if (part(before, "spec").get("suspend") is True) == suspend:
        return before, False
    return await access.patch(name, {"spec": {"suspend": suspend}}), True


def foretold(consortium: Object, *, suspend: bool, changed: bool) -> str:
    """What will happen."""
    shown = summary(consortium)
    name, end = shown["name"], shown["verdict"]["end"]
    if end == "Failed":
        cause = shown["verdict"]["sentence"]
        return f"{name}: this attempt has failed, which neither suspending nor resuming changes: {cause}"
    if end == "Completed":
        return f"{name}: all {shown['rounds']} rounds are done; there is nothing to suspend or resume"
    if not changed:
        return f"{name}: spec.suspend is {str(suspend).lower()} already; {standing(shown)}"
    if suspend:
        return (
            f"{name}: its nodes are told to stop and end within 30 s, which frees their GPUs; what is stored stays, up "
            f"to round {shown['round']} of {shown['rounds']}, and `pcmoe resume {name}` goes on from there"
        )
    return (
        f"{name}: its nodes are started, load model and data, and go on after round {shown['round']} of "
        f"{shown['rounds']}; a manifest under version control that says suspend: true would suspend it again"
    )


def settled(generation: int, *, suspend: bool) -> Callable[[Object], int | None]:
    """Whether an object of this generation or a later one is where it was sent: an exit code, or None."""

    def done(consortium: Object) -> int | None:
        status = part(consortium, "status")
        if whole(status.get("observedGeneration")) < generation:
            return None
        end = ended(consortium)
        if end is not None:
            return end
        conditions = {text_at(each, "type"): text_at(each, "status") for each in items(status, "conditions")}
        if not suspend and conditions.get("Accepted") == "False":  # shown as Invalid; nothing will start it
            return FAILED
        return 0 if conditions.get("Suspended" if suspend else "Ready") == "True" else None

    return done
