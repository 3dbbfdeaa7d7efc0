"""The facts of a report, gathered from a cluster: the consortium, its Jobs, pods and Events, and each journal."""

import asyncio
import signal
from collections.abc import Awaitable
from datetime import UTC, datetime

from pcmoe_operator import spec
from pcmoe_operator.answers import Object, part, printable
from pcmoe_operator.remote.access import Access, reach
from pcmoe_operator.remote.report_journals import Journals, Listing, Tell
from pcmoe_operator.remote.report_status import held_of, images_of, participants_here, standing_of
from pcmoe_operator.remote.session import AccessError
from pcmoe_operator.report.facts import facts_of
from pcmoe_operator.report.figures import Gathered, RunFacts
from pcmoe_operator.report.timeline import of_conditions, of_events, of_pods


def facts_from(
    name: str, *, context: str | None, namespace: str | None, make_pods: bool, tell: Tell
) -> RunFacts:
    """`gather` in the cluster that kubectl would ask. A signal to end leaves no pod behind.

    Raises:
        OperatorError: as `gather`, or there is no way into a cluster.
        KeyboardInterrupt: told to stop.
    """

    async def main() -> RunFacts:
        # As Ctrl-C does by itself: what is under way is cancelled, which deletes pods.
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with reach(context, namespace) as access:
            return await gather(access, name, make_pods=make_pods, tell=tell)

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def gather(access: Access, name: str, *, make_pods: bool, tell: Tell) -> RunFacts:
    """All that a report of a consortium is made of.

    Args:
        access: The cluster, with the consortium's namespace.
        name: The consortium.
        make_pods: Whether volumes may be read by pods made for that.
        tell: Hears a sentence about each participant that takes a while.

    Raises:
        OperatorError: the consortium can't be read, or its manifest breaks rules.
    """
    raw = await access.consortium(name)
    consortium = spec.parse(raw)
    here = participants_here(consortium, raw)
    jobs, pods, events = await asyncio.gather(
        _listing(access.jobs(name)), _listing(access.pods(name)), _listing(access.events(name))
    )
    journals = Journals(access=access, consortium=raw, jobs=jobs, pods=pods, make_pods=make_pods, tell=tell)
    (parts, missing), coordinators = await asyncio.gather(journals.all_of(here), journals.coordinators())
    told = of_events(events.found)
    others = [*of_conditions(part(raw, "status"), told), *of_pods(pods.found), *coordinators]
    return facts_of(
        consortium,
        Gathered(
            parts=parts,
            missing=missing | ({"Events of the cluster": events.refused} if events.refused else {}),
            elsewhere=[each for each in consortium.names if each not in here],
            held=held_of(consortium, pods.found, datetime.now(UTC)),
            standing=standing_of(raw),
            events=[*told, *others],
            settings={"namespace": access.namespace, "attempt": str(consortium.spec.attempt)},
            software=images_of(jobs.found, here),
        ),
    )


async def _listing(asked: Awaitable[list[Object]]) -> Listing:
    """What was listed, or why it wasn't."""
    try:
        return Listing(found=await asked)
    except AccessError as error:
        return Listing(found=[], refused=printable(str(error)))
