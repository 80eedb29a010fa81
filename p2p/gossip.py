"""Signed gossip on libp2p's GossipSub, with its traps closed.

`SwarmPubsub` replaces the parts of py-libp2p that decide: each message is judged in one place (`Judge`), in
order of arrival, before anything is stored, delivered or forwarded. What libp2p keeps is the mesh.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX

from p2p.api import MAX_GOSSIP_BYTES, GossipMessage, Validator
from p2p.host import live_connections, swarm_of
from p2p.identity import peer_id_text, verify_raw
from p2p.queues import DropOldest
from p2p.seen import SeenMessages
from p2p.settings import GossipSettings

log = logging.getLogger(__name__)
PROTOCOL = TProtocol("/meshsub/1.1.0")
PREFIX = PUBSUB_SIGNING_PREFIX.encode()
MAX_RPC_BYTES = 1_048_000
"""Above this libp2p drops a frame silently."""
READ_BYTES = 65_536
SEQNO_BYTES = 8


class Verdict(enum.Enum):
    ACCEPT = "accept"
    IGNORE = "ignore"
    """Seen before, own, or of no topic of ours."""
    FORGED = "forged"
    REFUSE = "refuse"


@dataclass(slots=True)
class Counters:
    published: int = 0
    delivered: int = 0
    refused: int = 0
    forged: int = 0


@dataclass(slots=True)
class Topic:
    """Subscribers of this node to one topic: (validator, queue) pairs."""

    subscribers: list[tuple[Validator, DropOldest[GossipMessage]]] = field(default_factory=list)
    dropped: int = 0
    """By queues that are closed meanwhile."""

    def judge(self, author: str, data: bytes) -> bool:
        return all(_valid(validator, author, data) for validator, _ in self.subscribers)

    def deliver(self, message: GossipMessage) -> int:
        reached = [entry for entry in self.subscribers if entry[1].put(message)]
        if len(reached) < len(self.subscribers):
            self.dropped += sum(queue.dropped for _, queue in self.subscribers if queue.abandoned)
            self.subscribers = reached
        return len(reached)


def _valid(validator: Validator, author: str, data: bytes) -> bool:
    try:
        return bool(validator(author, data))
    except Exception:  # the contract of `Validator`: an exception is a refusal
        log.exception("a gossip validator failed")
        return False


def signed_part(message: rpc_pb2.Message) -> bytes:
    """What the signature of a message covers (libp2p's pubsub specification)."""
    bare = rpc_pb2.Message(data=message.data, topicIDs=message.topicIDs, from_id=message.from_id, seqno=message.seqno)
    return PREFIX + bare.SerializeToString()


class Judge:
    """Decides about each message that arrives, from what it says and what was seen before."""

    def __init__(self, own: bytes, settings: GossipSettings) -> None:
        self._own = own
        self.topics: dict[str, Topic] = {}
        self.counters = Counters()
        self.seen = SeenMessages(settings.seen_ttl, settings.seen_most)

    def judge(self, message: rpc_pb2.Message, now: float) -> Verdict:
        names = list(message.topicIDs)
        topic = self.topics.get(names[0]) if len(names) == 1 else None
        if topic is None or message.from_id == self._own:
            return Verdict.IGNORE
        key = message.from_id + message.seqno
        if self.seen.has(key, now):
            return Verdict.IGNORE
        if len(message.data) > MAX_GOSSIP_BYTES:
            self.counters.refused += 1
            return Verdict.REFUSE
        if len(message.seqno) != SEQNO_BYTES or not verify_raw(message.from_id, signed_part(message), message.signature):
            self.counters.forged += 1
            return Verdict.FORGED
        self.seen.add(key, now)
        author = peer_id_text(message.from_id)
        if not topic.judge(author, message.data):
            self.counters.refused += 1
            return Verdict.REFUSE
        self.counters.delivered += topic.deliver(GossipMessage(names[0], author, message.data))
        return Verdict.ACCEPT


class Mesh(GossipSub):
    """GossipSub whose heartbeat outlives an exception."""

    async def heartbeat(self) -> None:
        while True:
            try:
                await super().heartbeat()
            except Exception:  # it would end the program; the mesh heals at the next beat
                log.exception("a gossip heartbeat failed")
            await trio.sleep(self.heartbeat_interval)


class SwarmPubsub(Pubsub):
    def __init__(self, host: BasicHost, router: Mesh, settings: GossipSettings, judge: Judge) -> None:
        super().__init__(host, router, strict_signing=True, max_inbound_rpc_size=MAX_RPC_BYTES)
        self.seen_messages.stop()  # a thread; `Judge` remembers instead
        self.counter = time.time_ns()  # whole seconds would give the ids of before a restart again
        self._settings = settings
        self._judge = judge
        self._drained = trio.Event()
        self._slow: set[ID] = set()
        self._joining: set[ID] = set()

    # --- incoming

    async def stream_handler(self, stream: INetStream) -> None:
        """Runs for a peer's outgoing stream until it ends. Answers with a hello: the peer may have forgotten
        our subscriptions together with an older connection."""
        peer = stream.muxed_conn.peer_id
        self.greet(peer)
        try:
            await self._read_frames(peer, stream)
        except Exception:  # broken stream or hostile bytes; either way this stream is over
            log.debug("a gossip stream ended", exc_info=True)
        await stream.reset()

    async def _read_frames(self, peer: ID, stream: INetStream) -> None:
        buffer = bytearray()
        while data := await stream.read(READ_BYTES):
            buffer += data
            while (frame := take_frame(buffer, self.max_inbound_rpc_size)) is not None:
                await self._handle(peer, frame)

    async def _handle(self, peer: ID, frame: bytes) -> None:
        rpc = rpc_pb2.RPC.FromString(frame)
        for message in rpc.publish:
            await self.push_msg(peer, message)
        if len(rpc.subscriptions) <= self.max_subscriptions_per_rpc:
            for subscription in rpc.subscriptions:
                self.handle_subscription(peer, subscription)
        if rpc.HasField("control"):
            rpc.ClearField("senderRecord")
            await self.router.handle_rpc(rpc, peer)

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        if self._judge.judge(msg, time.monotonic()) is Verdict.ACCEPT:
            await self.router.publish(msg_forwarder, msg)

    def _is_msg_seen(self, msg: rpc_pb2.Message) -> bool:
        return self._judge.seen.has(msg.from_id + msg.seqno, time.monotonic())

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """Nothing: `Judge` has delivered."""

    # --- outgoing

    async def send(self, topic: str, data: bytes) -> None:
        """Signs and queues one message for the mesh, after room is made for it."""
        await self._wait_for_room()
        message = rpc_pb2.Message(data=data, topicIDs=[topic], from_id=self.my_id.to_bytes(), seqno=self._next_seqno())
        assert self.sign_key is not None
        message.signature = self.sign_key.sign(signed_part(message))
        self._judge.seen.add(message.from_id + message.seqno, time.monotonic())
        self._judge.counters.published += 1
        await self.router.publish(self.my_id, message)

    async def _wait_for_room(self) -> None:
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(self._settings.patience) as patience:
            while self._congested():
                await self._drained.wait()
        if patience.cancelled_caught:
            self._slow.update(self._congested())

    def _congested(self) -> list[ID]:
        high = self._settings.queue_high
        return [peer for peer, queue in self.peer_queues.items() if len(queue) >= high and peer not in self._slow]

    async def handle_sending_messages(self, peer_id: ID, stream: INetStream, queue: RpcQueue) -> None:
        """One task per peer. The queue ends with the peer; the stream ends with this task."""
        try:
            while (rpc := await queue.pop()) is not None:
                if not await self.write_msg(stream, rpc):
                    break
                self._slow.discard(peer_id)
                self._drained.set()
                self._drained = trio.Event()
        except Exception:  # libp2p's streams raise many types; all mean that the stream is over
            log.debug("a gossip stream broke", exc_info=True)
            self._drop(peer_id, stream)
        finally:
            self._drained.set()
            self._drained = trio.Event()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                await stream.reset()

    async def write_msg(self, stream: INetStream, rpc_msg: rpc_pb2.RPC) -> bool:
        rpc_msg.ClearField("senderRecord")
        return await super().write_msg(stream, rpc_msg)

    # --- peers

    def get_hello_packet(self) -> rpc_pb2.RPC:
        options = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=name) for name in self.topic_ids]
        return rpc_pb2.RPC(subscriptions=options)

    def greet(self, peer: ID) -> None:
        """Tell a peer our subscriptions again; knowing them twice does no harm."""
        queue = self.peer_queues.get(peer)
        if queue is not None:
            queue.push(self.get_hello_packet(), priority=True)

    async def _handle_new_peer(self, peer_id: ID) -> None:
        if peer_id in self._joining:  # two connections at once would open two streams and forget one
            return
        self._joining.add(peer_id)
        try:
            await super()._handle_new_peer(peer_id)
        finally:
            self._joining.discard(peer_id)

    def _drop(self, peer: ID, stream: INetStream) -> None:
        if self.peers.get(peer) is stream:
            self._handle_dead_peer(peer)

    def tend(self) -> None:
        """Replaces streams whose connection is gone, and opens missing ones. What libp2p's events miss: a
        peer that returned with the same identity while its old connection still seemed open."""
        for peer, stream in list(self.peers.items()):
            muxed = cast(Any, stream).muxed_conn
            if muxed.is_closed or muxed.event_shutting_down.is_set():
                self._handle_dead_peer(peer)
        for peer in list(swarm_of(cast(BasicHost, self.host)).connections):
            if peer not in self.peers and peer not in self._joining and live_connections(cast(BasicHost, self.host), str(peer)):
                self._schedule_peer_stream_retry(peer)


def take_frame(buffer: bytearray, most: int) -> bytes | None:
    """Removes and returns the first whole frame (an unsigned varint, then as many bytes), if there is one."""
    length = shift = 0
    for index, byte in enumerate(buffer[:5]):
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if length > most:
                raise ValueError(f"a gossip frame of {length} bytes")
            end = index + 1 + length
            if len(buffer) < end:
                return None
            frame = bytes(buffer[index + 1 : end])
            del buffer[:end]
            return frame
    if len(buffer) >= 5:
        raise ValueError("not a gossip frame")
    return None


def make_pubsub(host: BasicHost, settings: GossipSettings) -> tuple[SwarmPubsub, Mesh, Judge]:
    """The two services to be run, and the judge that holds topics and counters."""
    judge = Judge(host.get_id().to_bytes(), settings)
    mesh = Mesh(
        protocols=[PROTOCOL],
        degree=settings.degree,
        degree_low=settings.degree_low,
        degree_high=settings.degree_high,
        heartbeat_interval=cast(int, settings.heartbeat),
        # libp2p's limit of 10 messages/s per topic throttles the local publisher too; adaptive gossip turns
        # a beat of 1 s into 30 s and more; the eclipse protection counts IP addresses, of which a swarm on
        # one machine has one.
        spam_protection_enabled=False,
        adaptive_gossip_enabled=False,
        eclipse_protection_enabled=False,
    )
    return SwarmPubsub(host, mesh, settings, judge), mesh, judge


class Gossip:
    """Topics of this node: what `p2p.api.Network` promises about publish and subscribe."""

    def __init__(self, pubsub: SwarmPubsub, judge: Judge, settings: GossipSettings, start: Callable[..., None]) -> None:
        self._pubsub = pubsub
        self._judge = judge
        self._settings = settings
        self._start = start
        self._dropped = 0

    @property
    def counters(self) -> Counters:
        return self._judge.counters

    @property
    def dropped(self) -> int:
        return self._dropped + sum(t.dropped + sum(q.dropped for _, q in t.subscribers) for t in self._judge.topics.values())

    async def publish(self, topic: str, data: bytes) -> None:
        if len(data) > MAX_GOSSIP_BYTES:
            raise ValueError(f"a gossip message has at most {MAX_GOSSIP_BYTES} bytes, not {len(data)}")
        await self._pubsub.send(topic, data)

    def subscribe(self, topic: str, validator: Validator, capacity: int) -> trio.MemoryReceiveChannel[GossipMessage]:
        queue = DropOldest[GossipMessage](capacity)
        entry = self._judge.topics.get(topic)
        if entry is None:
            entry = self._judge.topics[topic] = Topic()
            self._start(self._pubsub.subscribe, topic)
        entry.subscribers.append((validator, queue))
        return queue.reader()

    async def tend(self) -> None:
        """Runs for ever: watches over the peers' streams and repeats the own subscriptions."""
        repeated = trio.current_time()
        while True:
            await trio.sleep(self._settings.watchdog)
            self._pubsub.tend()
            await self._leave_unused()
            if trio.current_time() - repeated >= self._settings.repeat:
                repeated = trio.current_time()
                for peer in list(self._pubsub.peers):
                    self._pubsub.greet(peer)

    async def _leave_unused(self) -> None:
        """Topics whose readers are all gone are neither received nor forwarded any more."""
        for name, topic in list(self._judge.topics.items()):
            if all(queue.abandoned for _, queue in topic.subscribers):
                self._dropped += topic.dropped + sum(queue.dropped for _, queue in topic.subscribers)
                del self._judge.topics[name]
                await self._pubsub.unsubscribe(name)
