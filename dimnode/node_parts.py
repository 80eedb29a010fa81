"""The parts that a node is built on, opened as its configuration says."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import structlog
import trio

from dimnode.clock import SystemClock
from dimnode.config import Config
from dimnode.errors import FailedPrecondition
from dimnode.events.outlets import Pubsub
from dimnode.home import Home
from dimnode.invite import Membership
from dimnode.ports import Journal
from dimnode.settings import Settings
from dimnode.snapshots.name_book import NameKind
from dimnode.snapshots.names import NAMESPACE, Outlet
from dimnode.swarm.electorate import Electorates, require_operator
from p2p.api import PortInUse
from p2p.dht.dht import SwarmDht
from p2p.identity import Identity, IdentityError, load, load_or_create, verify
from p2p.ipfs.embedded import open_embedded
from p2p.ipfs.store import Store
from p2p.ipfs.traffic import MayServe
from p2p.network import Libp2pNetwork, open_network

log = structlog.get_logger(__name__)


def identity(home: Home) -> Identity:
    try:
        return load_or_create(home.identity_path)
    except IdentityError as e:
        raise FailedPrecondition(str(e)) from e


def names_key(home: Home) -> Identity:
    """What this node publishes under, made at the first start."""
    try:
        return load_or_create(home.names_key_path)
    except IdentityError as e:
        raise FailedPrecondition(f"names.key: {e}", hint="Without it, the node makes another one: move it away.") from e


async def electorates(
    config: Config, settings: Settings, home: Home, member: Membership, journal: Journal, network: Libp2pNetwork
) -> Electorates:
    """Raises `FailedPrecondition` if elections by majority are asked for and nobody's list of voters can be believed."""
    by_majority = config.election.mode == "majority"
    operator = require_operator(member.operator) if by_majority else member.operator
    key = await trio.to_thread.run_sync(operator_key, home, operator)
    made = Electorates(network, journal, SystemClock(), swarm=member.swarm, operator=operator, signer=key, settings=settings.lists())
    await made.open(member.electorate, (config.election.electorate or (network.peer_id,)) if by_majority else ())
    if by_majority and len(made.voters()) == 2:
        log.warning("electorate.of_two", voters=list(made.voters()), hint="It stops when either of the two does: add a third voter.")
    return made


def operator_key(home: Home, operator: str | None) -> Identity | None:
    """The key, if this is the home that has it."""
    try:
        key = load(home.operator_key_path)
    except FileNotFoundError:
        return None
    except IdentityError as e:
        raise FailedPrecondition(str(e)) from e
    return key if key.peer_id == operator else None


@asynccontextmanager
async def network(config: Config, settings: Settings, identity: Identity, member: Membership) -> AsyncGenerator[Libp2pNetwork, None]:
    """The network on the configured addresses; if the default port is taken, on a free one."""
    async with AsyncExitStack() as stack:
        wanted = settings.network(member)
        try:
            network = await stack.enter_async_context(open_network(identity=identity, settings=wanted))
        except PortInUse as e:
            if not config.is_default("p2p.listen"):
                raise FailedPrecondition(f"p2p.listen: {e}", hint="Set p2p.listen to a free port, or to /tcp/0 for any.") from e
            log.warning("p2p.port_taken", listen=list(wanted.listen), instead="a free port")
            free = settings.network(member, any_port=True)
            network = await stack.enter_async_context(open_network(identity=identity, settings=free))
        yield network


def outlet(store: Store, swarm: str) -> Outlet | None:
    """Where the swarm's state is published besides: the Kubo daemon, if the node uses one."""
    if store.backend != "kubo":
        return None
    from p2p.ipfs.kubo.store import KuboStore

    assert isinstance(store, KuboStore)
    return store.names(f"dim-{swarm}")


def pubsub(config: Config, store: Store) -> Pubsub | None:
    """Where events are published besides."""
    if store.backend != "kubo" or not config.events.kubo:
        return None
    from p2p.ipfs.kubo.store import KuboStore

    assert isinstance(store, KuboStore)
    return store.pubsub()


def dht(settings: Settings, swarm: str, network: Libp2pNetwork) -> SwarmDht | None:
    """The swarm's distributed hash table, unless the configuration is against it."""
    if (wanted := settings.dht()) is None:
        return None
    return SwarmDht(network, {NAMESPACE: NameKind(swarm, SystemClock().wall, verify)}, wanted)


def store(
    config: Config, settings: Settings, home: Home, network: Libp2pNetwork, may_serve: MayServe, dht: SwarmDht | None
) -> AbstractAsyncContextManager[Store]:
    folder = home.folder("blocks")
    find_providers = dht.find_providers if dht is not None else None
    if config.ipfs.backend == "embedded":
        return open_embedded(
            folder,
            host=network.host,
            connected=network.peers,
            open_stream=network.open_stream,
            may_serve=may_serve,
            find_providers=find_providers,
            settings=settings.store(),
        )
    from p2p.ipfs.kubo.store import open_kubo  # which brings an HTTP client: other nodes need none

    return open_kubo(
        folder,
        host=network.host,
        connected=network.peers,
        open_stream=network.open_stream,
        may_serve=may_serve,
        find_providers=find_providers,
        settings=settings.store(),
        kubo=settings.kubo(),
    )
