"""The swarm's own Kademlia DHT: who has what, and records of names, where nobody who is known can tell.

py-libp2p's `KadDHT` serves, keeps the routing table, looks for the nodes near a key and speaks with each; the bounds, the times and the
questions are here. Its own service loop is not run: it refreshes once at the start, when nobody is connected yet, and then every ten minutes,
and its questions answer from what was heard before for up to a day.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

import trio
import varint
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import NamespacedValidator, Validator
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from p2p.dht import patches
from p2p.dht.api import RecordKind
from p2p.dht.host import DhtHost, DhtStream, Network
from p2p.dht.settings import DhtSettings
from p2p.dht.shares import Quota
from p2p.dht.stores import Providers, Records, unsigned
from p2p.host import dialable, to_id
from p2p.identity import is_peer_id
from p2p.ipfs import cid as cids

log = logging.getLogger(__name__)
_NEAR = 20
"""Nodes near a key that are told and asked (Kademlia's k)."""
_PARALLEL = 10
_WINDOW = 10.0
"""Seconds in which libp2p counts a peer's announcements."""
_sender: ContextVar[str] = ContextVar("dht_sender", default="")


class SwarmDht:
    """`p2p.dht.api.Dht`. ``kinds``: what may be stored, by namespace. It answers others while `run` runs."""

    def __init__(self, network: Network, kinds: Mapping[str, RecordKind], settings: DhtSettings | None = None) -> None:
        patches.apply()
        self._network = network
        self._settings = s = settings or DhtSettings()
        self._kinds = dict(kinds)
        self._host = DhtHost(network, s)
        validators: dict[str, Validator] = {namespace: _Judge(namespace, kind) for namespace, kind in kinds.items()}
        host: Any = self._host
        self._kad = kad = KadDHT(
            host,
            DHTMode.SERVER,
            validator=NamespacedValidator(validators, strict_validation=True),
            validator_changed=True,
            strict_validation=True,
            max_peers_per_subnet=0,  # a swarm in one subnet is the rule, and its key is the admission
        )
        self._providers = Providers(host, kad.peer_routing, s)
        self._records = Records(host, kad.local_peer_id, _sender.get, s)
        kad.provider_store = self._providers
        kad.value_store = self._records
        kad._provider_rate_max = int(s.announcements_rate * _WINDOW)
        kad._provider_rate_window = _WINDOW
        self._quota = Quota(s.streams_rate, s.streams_burst)
        self._serving: Counter[str] = Counter()
        self._slots = trio.CapacityLimiter(s.at_once)
        self._nowhere: OrderedDict[bytes, float] = OrderedDict()
        """Content that nobody was found to have, and when."""
        self._counts: Counter[str] = Counter()

    def statistics(self) -> Mapping[str, int]:
        """``members`` of the routing table, what is kept for others, and what was asked and answered."""
        size = {"members": self._kad.get_routing_table_size(), "providers": self._providers.size(), "records": self._records.size()}
        return {**size, **self._counts}

    # --- serving, and looking after the tables

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        self._network.serve_streams(patches.PROTOCOL, self._serve)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._watch_members)
                task_status.started()
                await self._refresh()
        finally:
            self._network.stop_serving_streams(patches.PROTOCOL)

    async def _refresh(self) -> None:
        while True:
            await trio.sleep(self._settings.refresh)
            self._providers.cleanup_expired()
            self._records.cleanup_expired()
            with trio.move_on_after(self._settings.timeout):
                await self._near(to_id(self._network.peer_id).to_bytes())

    async def _watch_members(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Whoever asks this node is told of those that it is connected to."""
        with self._network.peer_events() as events:
            await self._note_members()
            task_status.started()
            async for event in events:
                if event.connected:
                    await self._note_member(event.peer)

    async def _serve(self, stream: Any) -> None:
        peer = str(stream.muxed_conn.peer_id)
        wrapped = DhtStream(stream, self._settings.answer_timeout)
        handler = self._host.handler
        if handler is None or self._serving[peer] >= self._settings.streams_at_once or not self._quota.take(peer, trio.current_time()):
            self._counts["turned_away"] += 1
            await wrapped.reset()
            return
        self._serving[peer] += 1
        token = _sender.set(peer)
        try:
            with trio.move_on_after(self._settings.serve_timeout):
                await handler(wrapped)
                self._counts["served"] += 1
        finally:
            _sender.reset(token)
            self._serving[peer] -= 1
            if not self._serving[peer]:
                del self._serving[peer]
            await wrapped.close()

    # --- content

    async def provide(self, cid: str) -> int:
        key = _key(cid)
        here = PeerInfo(to_id(self._network.peer_id), self._host.get_addrs())
        self._providers.add_provider(key, here)
        taken = await self._ask_near(key, partial(self._announce, key), lambda told: told)
        self._counts["provided"] += 1
        return len(taken)

    async def _announce(self, key: bytes, peer: ID) -> bool:
        message = Message(type=Message.ADD_PROVIDER, key=key)
        message.providerPeers.add(id=to_id(self._network.peer_id).to_bytes(), addrs=[a.to_bytes() for a in self._host.get_addrs()])
        stream = await self._host.new_stream(peer, [patches.PROTOCOL])
        try:
            data = message.SerializeToString()
            await stream.write(varint.encode(len(data)) + data)
            reader: Any = stream
            answer = Message.FromString(await read_varint_prefixed_bytes_limited(reader, patches.MAX_MESSAGE))
        finally:
            await stream.close()
        return answer.type == Message.ADD_PROVIDER and answer.key == key

    def withdraw(self, cid: str) -> None:
        """This node has it no more. Others forget it in time; whoever asks the node itself is told so by it."""
        self._providers.withdraw(_key(cid), self._network.peer_id)

    async def find_providers(self, cid: str) -> tuple[str, ...]:
        key = _key(cid)
        now = trio.current_time()
        if self._nowhere.get(key, float("-inf")) + self._settings.lacking > now:
            return ()
        found: dict[str, tuple[str, ...]] = {}

        def note(providers: Collection[PeerInfo]) -> bool:
            for each in providers:
                peer = str(each.peer_id)
                if is_peer_id(peer) and peer != self._network.peer_id and len(found) < self._settings.providers:
                    found.setdefault(peer, tuple(str(a) for a in each.addrs)[: self._settings.addresses_each])
            return len(found) >= self._settings.providers

        if not note(self._providers.get_providers(key)):
            await self._ask_near(key, partial(self._ask_for_providers, key), bool, note)
        self._counts["searched"] += 1
        if not found:
            self._note_nowhere(key, trio.current_time())
        else:
            self._counts["found"] += 1
        for peer, addresses in found.items():
            if addresses and peer not in self._network.peers():
                self._network.add_address(peer, addresses)
        return tuple(found)

    async def _ask_for_providers(self, key: bytes, peer: ID) -> list[PeerInfo]:
        providers, _ = await self._providers._get_providers_from_peer_with_closers(peer, key)
        return providers

    def _note_nowhere(self, key: bytes, now: float) -> None:
        self._nowhere.pop(key, None)
        self._nowhere[key] = now
        if len(self._nowhere) > self._settings.lacking_most:
            self._nowhere.popitem(last=False)

    # --- records

    async def put(self, namespace: str, name: str, value: bytes) -> int:
        self._kinds[namespace].check(name, value)
        key = f"/{namespace}/{name}".encode()
        known = self._records.get(key)
        if known is not None and self._kinds[namespace].newer(name, known.value, value):
            raise ValueError("a newer record is known")
        self._records.put(key, value)
        store = partial(self._store_at, key, value)
        taken = await self._ask_near(key, store, lambda stored: stored)
        self._counts["stored"] += 1
        return len(taken)

    async def _store_at(self, key: bytes, value: bytes, peer: ID) -> bool:
        return await self._records._store_at_peer(peer, key, value, record=unsigned(key, value))

    async def get(self, namespace: str, name: str) -> bytes | None:
        kind = self._kinds[namespace]
        key = f"/{namespace}/{name}".encode()
        known = self._records.get(key)
        answers = [known.value] if known is not None else []
        answers += [value for value in await self._ask_near(key, partial(self._ask_for_record, key), bool) if value is not None]
        best: bytes | None = None
        for value in answers:
            try:
                kind.check(name, value)
            except ValueError as error:
                self._counts["refused"] += 1
                log.debug("a record of %s was refused: %s", name, error)
                continue
            if best is None or (value != best and kind.newer(name, value, best)):
                best = value
        self._counts["read"] += best is not None
        return best

    async def _ask_for_record(self, key: bytes, peer: ID) -> bytes | None:
        value = await self._records._get_from_peer(peer, key)
        return value if isinstance(value, bytes) else None

    # --- asking those near a key

    async def _ask_near(
        self,
        key: bytes,
        ask: Callable[[ID], Awaitable[Any]],
        counts: Callable[[Any], bool],
        enough: Callable[[Any], bool] | None = None,
    ) -> list[Any]:
        """What the nodes near the key answered in time, if it ``counts``; until one answer makes it ``enough``."""
        answers: list[Any] = []
        limit = trio.CapacityLimiter(_PARALLEL)

        async def one(peer: ID, scope: trio.CancelScope) -> None:
            async with limit:
                with trio.move_on_after(self._settings.answer_timeout):
                    try:
                        answer = await ask(peer)
                    except Exception as problem:  # noqa: BLE001 - libp2p raises a dozen unrelated types for what a peer does wrong
                        log.debug("the DHT's question to %s failed: %s", peer, problem)
                        return
                    if counts(answer):
                        answers.append(answer)
                        if enough is not None and enough(answer):
                            scope.cancel()

        with trio.move_on_after(self._settings.timeout) as patience:
            async with self._slots:
                near = await self._near(key)
                async with trio.open_nursery() as nursery:
                    for peer in near:
                        nursery.start_soon(one, peer, nursery.cancel_scope)
        self._counts["timeouts"] += patience.cancelled_caught
        return answers

    async def _near(self, key: bytes) -> list[ID]:
        """The nodes that are nearest to the key, asked for step by step, without this one."""
        await self._note_members()
        found = await self._kad.peer_routing.find_closest_peers_network(key, _NEAR)
        return [peer for peer in dict.fromkeys(found) if peer != self._kad.local_peer_id][:_NEAR]

    async def _note_members(self) -> None:
        """Who is connected is in the routing table, unless its bucket is full."""
        for peer in self._network.peers():
            await self._note_member(peer)

    async def _note_member(self, peer: str) -> None:
        table, member = self._kad.routing_table, to_id(peer)
        if not table.peer_in_table(member) and self._host.takes_part(peer, trio.current_time()):
            await table.add_peer(PeerInfo(member, dialable(self._network.addresses_of(peer))), skip_server_mode_check=True)


class _Judge(Validator):
    """A kind of record, as libp2p wants to see it."""

    def __init__(self, namespace: str, kind: RecordKind) -> None:
        self._prefix = f"/{namespace}/"
        self._kind = kind

    def validate(self, key: str, value: bytes) -> None:
        """Raises `ValueError`."""
        if not key.startswith(self._prefix):
            raise ValueError("a key of another namespace")
        self._kind.check(key.removeprefix(self._prefix), value)

    def select(self, key: str, values: list[bytes]) -> int:
        """The newest; of equal ones the last, so that what is stored again is kept for longer."""
        name, best = key.removeprefix(self._prefix), 0
        for index, value in enumerate(values[1:], start=1):
            if value == values[best] or self._kind.newer(name, value, values[best]):
                best = index
        return best


def _key(cid: str) -> bytes:
    """The multihash: raw and wrapped content of one hash are one. Raises `BadCid`."""
    return cids.parse(cid).binary[2:]
