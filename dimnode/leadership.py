"""Leadership is a scope: the orchestrator and its API live inside a held seat and cannot outlive it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from dimnode.domain.node import Seat
from dimnode.errors import DimError
from dimnode.orchestrator import Orchestrator
from dimnode.orchestrator.seat_questions import AskSettings, JobAnswers
from dimnode.ports import Elector, OrchestratorApi, SwarmApi
from dimnode.rpc.bridge import Bridge
from dimnode.rpc.orchestrator_server import OrchestratorServerSettings, RateLimit, is_loopback, serve_orchestrator
from p2p.api import Network
from p2p.groups import collapse

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LeadershipSettings:
    listen: str
    fallback: bool
    """Whether a taken port may be replaced by a free one."""
    announce: str
    server: OrchestratorServerSettings
    ask: AskSettings
    """For questions between seats."""
    load_interval: float = 0.2
    """Seconds between two looks at how many jobs are driven here, which beats tell."""
    retry: float = 5.0
    """Seconds before a node whose API could not be opened stands for a seat again."""


class Leadership:
    """Opens the orchestrator whenever this node holds a seat."""

    def __init__(
        self,
        network: Network,
        elector: Elector,
        bridge: Bridge,
        make: Callable[[], Orchestrator],
        api: Callable[[Orchestrator], OrchestratorApi],
        swarm: SwarmApi,
        rate_limit: RateLimit,
        settings: LeadershipSettings,
    ) -> None:
        """``api``: what clients of this seat are answered by, around its orchestrator."""
        self._elector = elector
        self._bridge = bridge
        self._make = make
        self._api = api
        self._swarm = swarm
        self._limit = rate_limit
        self._settings = settings
        self.orchestrator: Orchestrator | None = None
        self.address: str | None = None
        """``host:port`` of the API while it is served."""
        JobAnswers(network, elector, lambda: self.orchestrator, settings.ask)

    def local(self) -> tuple[str, int] | None:
        """Where this node itself reaches its API."""
        if self.address is None:
            return None
        host, _, port = self.address.rpartition(":")
        return ("127.0.0.1" if host in ("0.0.0.0", "") else host.strip("[]"), int(port))  # noqa: S104 - compared, not bound

    async def run(self) -> None:
        """One term after the other, until cancelled."""
        while True:
            seat = await self._elector.wait_seat()
            log.info("seat.won", seat=seat.seat, term=seat.n)
            try:
                await self._term(seat)
            except DimError as e:
                log.error("orchestrator.cannot_serve", code=e.code.value, reason=e.message, hint=e.hint)
                await self._elector.release()
                await trio.sleep(self._settings.retry)
            log.info("seat.ended", seat=seat.seat, term=seat.n)

    async def _term(self, seat: Seat) -> None:
        try:
            with collapse():
                async with trio.open_nursery() as leader:
                    leader.start_soon(self._end_when_lost, seat, leader.cancel_scope)
                    orchestrator = self._make()
                    await leader.start(orchestrator.run)
                    leader.start_soon(self._tell_load, orchestrator)
                    await self._serve(orchestrator)
        finally:
            self.orchestrator = None
            self.address = None

    async def _serve(self, orchestrator: Orchestrator) -> None:
        try:
            await self._serve_on(orchestrator, self._settings.listen)
        except DimError:
            if not self._settings.fallback:
                raise
            host = self._settings.listen.rpartition(":")[0]
            log.warning("orchestrator.port_taken", listen=self._settings.listen, instead="a free port")
            await self._serve_on(orchestrator, f"{host}:0")

    async def _serve_on(self, orchestrator: Orchestrator, listen: str) -> None:
        async with serve_orchestrator(
            self._bridge, self._api(orchestrator), self._swarm, listen, self._settings.server, rate_limit=self._limit
        ) as server:
            self.orchestrator = orchestrator
            self.address = server.address
            advertised = self._settings.announce or server.address
            self._elector.advertise(advertised, is_loopback(advertised))
            await trio.sleep_forever()

    async def _tell_load(self, orchestrator: Orchestrator) -> None:
        """The next beat says how much this seat has to do: whoever has new jobs looks for a freer one."""
        while True:
            self._elector.tell_load(orchestrator.load())
            await trio.sleep(self._settings.load_interval)

    async def _end_when_lost(self, seat: Seat, scope: trio.CancelScope) -> None:
        await self._elector.wait_lost(seat)
        scope.cancel()
