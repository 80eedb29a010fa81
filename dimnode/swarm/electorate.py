"""The electorate of this swarm as this node has it: kept in the journal, passed on to whoever has an older one, changed where
the operator's key is. The rules are `dimnode.core.electorate`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import msgspec
import structlog
import trio

from dimnode.core.electorate import ElectorateError, first, replaces, with_voter, without_voter
from dimnode.core.job_record import Verify
from dimnode.domain import codec
from dimnode.domain.voting import Electorate, SignedElectorate
from dimnode.errors import DimError, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from dimnode.ports import Clock, Journal, Signer
from dimnode.security.electorate import MAX_BYTES, read_electorate, sign_electorate
from p2p.api import Network, NetworkError
from p2p.identity import verify as verify_with_peer_id

log = structlog.get_logger(__name__)

METHOD = "electorate/list"
KEY = "electorate"
NO_OPERATOR = "this home knows no operator of its swarm"
NO_OPERATOR_HINT = "Join again with a new invite from a node that knows it. For a swarm that never had one: `dimnode init --operator` in one home, and invites from there."


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """In the journal."""

    signed: SignedElectorate
    settled: bool


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """Both sides' lists, if they have any."""

    signed: SignedElectorate | None = None


@dataclass(frozen=True, slots=True)
class ListSettings:
    request_timeout: float = 2.0
    """Seconds for one exchange of lists."""
    settle_timeout: float = 10.0
    """Seconds for a change to be stored by most voters, before its operator is told that it is not."""
    poll: float = 0.25
    """Seconds between two looks whether it is."""
    between: float = 3.2
    """Least seconds between a version that acts and the next: one lease, by the slowest clock."""


class Electorates:
    """``operator``: the peer id of the operator's key (None: unknown, then no list is believed); ``signer``: that key, in the one
    home that has it."""

    def __init__(
        self,
        network: Network,
        journal: Journal,
        clock: Clock,
        *,
        swarm: str,
        operator: str | None,
        signer: Signer | None = None,
        settings: ListSettings | None = None,
        verify: Verify = verify_with_peer_id,
    ) -> None:
        self._network = network
        self._journal = journal
        self._clock = clock
        self._swarm = swarm
        self.operator = operator
        self._signer = signer
        self._settings = settings or ListSettings()
        self._verify = verify
        self._signed: SignedElectorate | None = None
        self.listed: Electorate | None = None
        self.settled = False
        self._settled_at = clock.monotonic()
        self._lock = trio.Lock()
        self._changing = trio.Lock()
        self.on_change: Callable[[], None] = lambda: None

    # --- life

    async def open(self, initial: SignedElectorate | None = None, voters: Collection[str] = ()) -> None:
        """What the journal has; else what an invite said (``initial``); else, where the operator's key is, version 1 of ``voters``."""
        if (data := await self._journal.get(KEY)) is not None:
            stored = codec.decode(data, Stored)
            if self.operator is not None:
                self.listed = read_electorate(stored.signed, self._swarm, self.operator, self._verify)
                self._signed, self.settled = stored.signed, stored.settled
        if initial is not None:
            await self.adopt(initial)
        if self.listed is None and self._signer is not None and voters:
            try:
                made = first(self._swarm, voters, self._signer.peer_id)
            except ElectorateError as e:
                raise FailedPrecondition(f"election.electorate: {e}") from e
            await self.adopt(sign_electorate(made, self._signer))

    def serve(self) -> None:
        """From now on others may exchange lists with this node: it takes part in elections by majority."""
        self._network.serve(METHOD, self._serve)

    @property
    def signed(self) -> SignedElectorate | None:
        return self._signed

    @property
    def can_sign(self) -> bool:
        """Whether the operator's key is here."""
        return self._signer is not None

    def voters(self) -> tuple[str, ...]:
        return self.listed.voters if self.listed else ()

    # --- what others have

    async def adopt(self, signed: SignedElectorate) -> bool:
        """Whether it is newer than what this node had; then it is durable. Raises `InvalidArgument` for what the operator did
        not sign, and what the journal raises."""
        if self.operator is None:
            return False
        listed = read_electorate(signed, self._swarm, self.operator, self._verify)
        async with self._lock:
            if not replaces(self.listed, listed):
                return False
            settled = not listed.previous
            await self._journal.put(KEY, codec.encode(Stored(signed=signed, settled=settled)))
            self._signed, self.listed, self.settled = signed, listed, settled
        log.info("electorate", version=listed.version, voters=len(listed.voters))
        self.on_change()
        return True

    async def settle(self, version: int) -> None:
        """A majority of the version before has stored this one: it acts, and that is remembered."""
        async with self._lock:
            if self.listed is None or self._signed is None or self.listed.version != version or self.settled:
                return
            await self._journal.put(KEY, codec.encode(Stored(signed=self._signed, settled=True)))
            self.settled = True
            self._settled_at = self._clock.monotonic()
        self.on_change()

    async def exchange(self, peer: str) -> bool:
        """Gives and takes: afterwards both have the newer list. Whether the peer answered."""
        data = codec.encode(Exchange(signed=self._signed))
        try:
            answer = await self._network.request(peer, METHOD, data, timeout=self._settings.request_timeout)
            await self._take(answer)
        except NetworkError:
            return False
        except (codec.CodecError, DimError) as e:
            log.warning("electorate.refused", peer=peer, reason=str(e))
        return True

    async def _take(self, data: bytes) -> None:
        theirs = codec.decode(data, Exchange) if len(data) <= 2 * MAX_BYTES else Exchange()
        if theirs.signed is not None:
            await self.adopt(theirs.signed)

    async def _serve(self, peer: str, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        try:
            await self._take(data)
        except (codec.CodecError, DimError) as e:
            log.warning("electorate.refused", peer=peer, reason=str(e))
        return codec.encode(Exchange(signed=self._signed))

    # --- what the operator does

    async def add(self, peer: str) -> None:
        """One more voter: a node that answers. Raises `FailedPrecondition`, `Unavailable`, `InvalidArgument`."""
        await self._change(peer, joins=True)

    async def remove(self, peer: str) -> None:
        """One voter less. Raises `NotFound`, `FailedPrecondition`, `Unavailable`."""
        await self._change(peer, joins=False)

    async def _change(self, peer: str, *, joins: bool) -> None:
        async with self._changing:
            signer, listed = self._signer, self.listed
            if signer is None:
                raise FailedPrecondition(
                    "the operator's key is not in this home", hint="Change the electorate on the node whose home has operator.key."
                )
            if listed is None:
                raise FailedPrecondition("this node has no electorate", hint='Start it with election.mode = "majority".')
            if not joins and peer not in listed.voters:
                raise NotFound(f"{peer} is no voter", hint="`dimnode electorate list` lists them.")
            try:
                new = with_voter(listed, peer) if joins else without_voter(listed, peer)
            except ElectorateError as e:
                raise FailedPrecondition(f"{peer}: {e}") from e
            await self._wait_turn(listed)
            if joins and peer != self._network.peer_id and not await self.exchange(peer):
                raise Unavailable(
                    f"{peer} does not answer",
                    hint='Start it with election.mode = "majority" first: a voter that is not there counts all the same.',
                )
            await self.adopt(sign_electorate(new, signer))
            await self._wait_settled({*new.voters, *new.previous}, new.version)

    async def _wait_turn(self, listed: Electorate) -> None:
        """The version of now has to act, for as long as a lease may last."""
        if not self.settled:
            await self._wait_settled({*listed.voters, *listed.previous}, listed.version)
        if listed.previous:
            await trio.sleep(max(0.0, self._settled_at + self._settings.between - self._clock.monotonic()))

    async def _wait_settled(self, peers: Collection[str], version: int) -> None:
        """Hands the list to those who need it until it acts. Raises `Unavailable` if that takes too long."""
        others = sorted(p for p in peers if p != self._network.peer_id)
        with trio.move_on_after(self._settings.settle_timeout):
            while not self.settled and self.listed is not None and self.listed.version == version:
                await self._tell(others)
                if not self.settled:
                    await trio.sleep(self._settings.poll)
        if not self.settled:
            raise Unavailable(
                f"version {version} of the electorate is not stored by a majority of the voters of before",
                hint="It spreads as soon as they are there. Until then no further change is possible.",
            )

    async def _tell(self, peers: Sequence[str]) -> None:
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(self.exchange, peer)


def require_operator(operator: str | None) -> str:
    """Raises `FailedPrecondition`: without the operator's public key no list of voters can be believed."""
    if operator is None:
        raise FailedPrecondition(NO_OPERATOR, hint=NO_OPERATOR_HINT)
    return operator


__all__ = ["Electorates", "InvalidArgument", "ListSettings", "require_operator"]
