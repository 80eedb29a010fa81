"""How a node leaves its swarm so that nobody notices."""

from __future__ import annotations

from functools import partial

import structlog
import trio

from dimnode.daemon.service import Daemon
from dimnode.orchestrator import Orchestrator
from dimnode.records.keeping import Keeping
from dimnode.swarm.elector import SwarmElector
from dimnode.swarm.majority_elector import MajorityElector
from dimnode.swarm.registry import SwarmRegistry
from p2p.groups import collapse

log = structlog.get_logger(__name__)


async def leave(
    orchestrator: Orchestrator | None,
    keeping: Keeping,
    daemon: Daemon,
    registry: SwarmRegistry,
    elector: SwarmElector | MajorityElector,
    drain: float,
) -> int:
    """Within ``drain`` seconds: nothing new is accepted, other seats have this one's jobs (claimed while it still drives
    them and is still called upon, so that they go on without a pause), the seat is free, tasks are handed back,
    records are where they will be looked for. Those of finished jobs, which may be many, are looked at from the beginning.
    Returns how many could not be handed over."""
    until = trio.current_time() + drain
    with collapse():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(keeping.replicator.hand_over, drain / 2, only_finished=True))
            with trio.move_on_after(drain / 2) as scope:
                if orchestrator is not None:
                    orchestrator.stop_accepting()
                await keeping.offers.hand_over(drain / 4)
                daemon.close_intake()
                registry.announce(leaving=True)
                await elector.release()
                await daemon.wait_idle()
            nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        log.info("node.handing_back", tasks=daemon.load().running + daemon.load().queued)
    await daemon.hand_back()
    return await keeping.replicator.hand_over(max(drain / 4, until - trio.current_time()))
