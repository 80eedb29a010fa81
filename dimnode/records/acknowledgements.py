"""Whether the end of a job counts in election mode ``majority``: most of the voters have it on their disks.

Its owner knows that from writing it. Whoever else has a copy asks the voters before it shows the end, takes in what they know
and hands the end to those who lack it (a read that writes back, as in H. Attiya, A. Bar-Noy and D. Dolev, "Sharing memory
robustly in message-passing systems", 1995): what one client was shown the next one is shown, too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

import structlog
import trio

from dimnode.core.electorate import others_needed
from dimnode.core.job_view import view
from dimnode.core.record_gate import EntryRules
from dimnode.core.records_sync import missing
from dimnode.domain import codec
from dimnode.errors import DimError
from dimnode.ports import Clock
from dimnode.records.exchange import ExchangeSettings, RecordExchange
from dimnode.records.messages import JobEntries
from dimnode.records.table import RecordTable
from p2p.api import Network, NetworkError
from p2p.groups import collapse

log = structlog.get_logger(__name__)
REMEMBERED = 10_000
"""Ends that are known to count."""


class Acknowledgements:
    def __init__(
        self, network: Network, table: RecordTable, clock: Clock, voters: Callable[[], Collection[str]], timeout: float, rules: EntryRules
    ) -> None:
        """``timeout``: seconds for the voters' answers."""
        self._me = network.peer_id
        self._table = table
        self._voters = voters
        self._timeout = timeout
        self._exchange = RecordExchange(network, table, clock, ExchangeSettings(request_timeout=timeout), rules=rules)
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def counts(self, job: str) -> bool:
        """Raises `NotFound`."""
        end = view(await self._table.find(job)).outcome_id
        needed = others_needed(self._voters(), self._me)
        if end is None or not needed or (job, end) in self._known:
            return True
        have: set[str] = set()
        enough = trio.Event()

        async def hand(peer: str) -> None:
            if await self._hand(peer, job):
                have.add(peer)
            if len(have) >= needed:
                enough.set()

        with collapse(), trio.move_on_after(self._timeout):
            async with trio.open_nursery() as nursery:
                for peer in sorted(set(self._voters()) - {self._me}):
                    nursery.start_soon(hand, peer)
                await enough.wait()
                nursery.cancel_scope.cancel()
        if len(have) < needed or view(await self._table.find(job)).outcome_id != end:
            return False
        self._known[job, end] = None
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return True

    async def _hand(self, peer: str, job: str) -> bool:
        """Afterwards both have what either had; whether that is so."""
        try:
            told = (await self._exchange.fetch(peer, [job])).get(job, [])
            if told:
                await self._exchange.take(peer, [JobEntries(job=job, entries=tuple(told))])
            mine = (await self._table.find(job)).entries()
            lacking = missing(mine, {e.id for e in told})
            return not lacking or job in await self._exchange.send(peer, [(job, lacking)])
        except (NetworkError, codec.CodecError, DimError) as e:
            log.debug("end.not_handed", peer=peer, job=job, reason=str(e))
            return False
