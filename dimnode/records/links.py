"""The way to one node that holds copies: entries of many jobs go there in few requests.

While a request is under way the next one fills (group commit over the network). Entries of one job arrive in the order in
which they were handed over: what comes while some of them are under way waits for the answer. A node that does not answer
is *down*: whatever was meant for it is given back at once, and it is asked again with growing pauses whether it is there.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeVar

import structlog
import trio

from dimnode.domain import codec
from dimnode.domain.record import SignedEntry
from dimnode.records.messages import (
    BLOCKS,
    MAX_BLOCKS,
    STORE,
    BlocksAnswer,
    BlocksRequest,
    JobEntries,
    StoreAnswer,
    StoreRequest,
    StoreResult,
)
from p2p.api import Network, NetworkError, Unreachable

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Times in seconds."""

    request_timeout: float = 5.0
    """Without an answer for so long a node is down."""
    slow_after: float = 0.6
    """A node that has not answered for so long is slow: others are preferred, and writers turn to them."""
    in_flight: int = 2
    """Requests to one node at once."""
    max_jobs: int = 256
    """Jobs in one request."""
    max_bytes: int = 4 * 1024 * 1024
    """Of entries in one request."""
    max_waiting: int = 4096
    """Jobs that wait for one node; it takes no more then."""
    max_waiting_bytes: int = 64 * 1024 * 1024
    """Of their entries."""
    retry_first: float = 0.5
    """Pause before a node that is down is asked again; doubled each time."""
    retry_most: float = 15.0
    full_pause: float = 5.0
    """For so long a node whose disk is full gets nothing."""
    blocks_timeout: float = 30.0
    """For a node to fetch a job's blocks."""
    blocks_at_once: int = 4
    """Jobs whose blocks one node fetches at once."""
    max_blocks: int = MAX_BLOCKS
    """In one request."""
    blocks_waiting: int = 1024
    """Jobs that wait for that."""


class Receiver(Protocol):
    """Whoever handed entries over. None of these may block or raise."""

    def stored(self, peer: str, job: str, mark: int) -> None:
        """Everything that was handed over up to this mark is durable there."""
        ...

    def learned(self, peer: str, job: str, entries: Sequence[SignedEntry]) -> None:
        """The node stored what it was sent, and has these ends of the job besides; unchecked."""
        ...

    def failed(self, peer: str, job: str, result: StoreResult | None) -> None:
        """The node answered so; None: nobody knows. All that was handed over of this job and is not stored is given back."""
        ...

    def blocks_answered(self, peer: str, job: str, cids: tuple[str, ...], kept: Collection[str] | None) -> None:
        """None: nobody knows."""
        ...

    def went_down(self, peer: str) -> None: ...

    def came_up(self, peer: str) -> None:
        """Or has room again."""
        ...


@dataclass(slots=True)
class _Part:
    """Of what was handed over at once: at most a request."""

    entries: Sequence[SignedEntry]
    size: int
    mark: int | None
    """Set on the last part."""
    new: bool


def in_parts(entries: Sequence[SignedEntry], max_bytes: int) -> Iterator[tuple[Sequence[SignedEntry], int]]:
    """The entries in order, cut so that each part fits into a request (or is one entry), with its size; at least one part."""
    size = sum(len(e.payload) for e in entries)
    if size <= max_bytes:
        yield entries, size
        return
    part: list[SignedEntry] = []
    size = 0
    for entry in entries:
        if part and size + len(entry.payload) > max_bytes:
            yield part, size
            part, size = [], 0
        part.append(entry)
        size += len(entry.payload)
    yield part, size


def _joined(job: str, parts: Sequence[_Part]) -> JobEntries:
    return JobEntries(job=job, entries=tuple(chain.from_iterable(p.entries for p in parts)), new=any(p.new for p in parts))


class Link:
    def __init__(
        self, peer: str, network: Network, settings: LinkSettings, start: Callable[..., None], receiver: Receiver, now: Callable[[], float]
    ) -> None:
        """``start`` starts a task in the owner's nursery, ``now`` tells seconds."""
        self.peer = peer
        self._network = network
        self._settings = settings
        self._start = start
        self._receiver = receiver
        self._now = now
        self._waiting: OrderedDict[str, deque[_Part]] = OrderedDict()
        self._busy: dict[str, deque[_Part]] = {}
        """Jobs under way, with what waits for the answer."""
        self._bytes = 0
        """Of all parts that were taken and not answered."""
        self._asking: dict[int, float] = {}
        """Requests under way, and since when."""
        self._senders = 0
        self._blocks: deque[tuple[str, tuple[str, ...]]] = deque()
        self._block_workers = 0
        self._full_until = float("-inf")
        self._crowded = False
        self._closed = False
        self._poked = trio.Event()
        self.up = True

    # --- how it stands

    @property
    def usable(self) -> bool:
        """Whether it takes entries now."""
        return self.up and not self._closed and not self.crowded and self._now() >= self._full_until

    @property
    def crowded(self) -> bool:
        crowded = len(self._waiting) + len(self._busy) >= self._settings.max_waiting or self._bytes >= self._settings.max_waiting_bytes
        self._crowded = self._crowded or crowded
        return crowded

    @property
    def slow(self) -> bool:
        return bool(self._asking) and self._now() - min(self._asking.values()) >= self._settings.slow_after

    # --- what is handed over

    def offer(self, job: str, entries: Sequence[SignedEntry], mark: int, *, new: bool = False) -> bool:
        """Takes entries to send, with a number that is told when they are stored. ``new``: the job is being accepted. False:
        not taken."""
        if not self.usable:
            return False
        parts = deque(_Part(part, size, None, new) for part, size in in_parts(entries, self._settings.max_bytes))
        parts[-1].mark = mark
        self._bytes += sum(p.size for p in parts)
        if job in self._busy:
            self._busy[job] += parts
        else:
            self._waiting.setdefault(job, deque()).extend(parts)
            self._more_senders()
        return True

    def ask_blocks(self, job: str, cids: tuple[str, ...]) -> bool:
        """Has the node fetch and keep blocks that this node has. False: too many wait for that already."""
        if not self.usable or len(self._blocks) >= self._settings.blocks_waiting:
            return False
        most = self._settings.max_blocks
        self._blocks.extend((job, cids[start : start + most]) for start in range(0, len(cids), most))
        if self._block_workers < self._settings.blocks_at_once:
            self._block_workers += 1
            self._start(self._fetch_blocks)
        return True

    def poke(self) -> None:
        """The node may be there again: if it is down it is asked at once."""
        self._poked.set()

    def close(self) -> None:
        """For good. What was handed over is given back."""
        self._closed = True
        self._poked.set()
        self._give_back()

    # --- sending

    def _more_senders(self) -> None:
        if self._senders < self._settings.in_flight:
            self._senders += 1
            self._start(self._send)

    async def _send(self) -> None:
        try:
            while self._waiting and self.up and not self._closed:
                await self._send_one(self._batch())
        finally:
            self._senders -= 1

    def _batch(self) -> list[tuple[str, list[_Part]]]:
        """Takes what fits into one request, the longest waiting first."""
        batch: list[tuple[str, list[_Part]]] = []
        size = 0
        while self._waiting and len(batch) < self._settings.max_jobs:
            job, parts = next(iter(self._waiting.items()))
            taken: list[_Part] = []
            while parts and (size + parts[0].size <= self._settings.max_bytes or not (batch or taken)):
                size += parts[0].size
                taken.append(parts.popleft())
            if not taken:
                break
            del self._waiting[job]
            self._busy[job] = parts
            batch.append((job, taken))
        return batch

    async def _send_one(self, batch: list[tuple[str, list[_Part]]]) -> None:
        request = StoreRequest(jobs=tuple(_joined(job, parts) for job, parts in batch))
        self._asking[id(batch)] = self._now()
        answer: StoreAnswer | None = None
        try:
            answer = await self._ask(STORE, request, StoreAnswer, self._settings.request_timeout)
            if tuple(r.job for r in answer.results) != tuple(job for job, _ in batch):
                raise codec.CodecError("the answer is about other jobs")
        except (NetworkError, codec.CodecError) as e:
            answer = None
            self._go_down(str(e))
        finally:
            del self._asking[id(batch)]
        for (job, parts), result in zip(batch, answer.results if answer is not None else [None] * len(batch), strict=True):
            self._answered(job, parts, result)
        if self._crowded and not self.crowded:
            self._crowded = False
            self._receiver.came_up(self.peer)

    def _answered(self, job: str, parts: list[_Part], result: StoreResult | None) -> None:
        rest = self._busy.pop(job, deque())
        self._bytes -= sum(p.size for p in parts)
        if result is None or result.status != "stored":
            self._bytes -= sum(p.size for p in rest)
            if result is not None and result.status == "full":
                self._full_until = self._now() + self._settings.full_pause
            self._receiver.failed(self.peer, job, result)
            return
        if result.entries:
            self._receiver.learned(self.peer, job, result.entries)
        if (mark := parts[-1].mark) is not None:
            self._receiver.stored(self.peer, job, mark)
        if rest and self.up and not self._closed:
            self._waiting[job] = rest
        elif rest:
            self._bytes -= sum(p.size for p in rest)
            self._receiver.failed(self.peer, job, None)

    async def _ask(self, method: str, request: Any, kind: type[T], timeout: float) -> T:
        return codec.decode(await self._network.request(self.peer, method, codec.encode(request), timeout=timeout), kind)

    # --- down and up again

    def _go_down(self, reason: str) -> None:
        if not self.up or self._closed:
            return
        log.info("copies.node_down", peer=self.peer, reason=reason)
        self.up = False
        self._start(self._probe)
        self._receiver.went_down(self.peer)
        self._give_back()

    def _give_back(self) -> None:
        """What waits; what is under way is told when that has failed."""
        waiting, self._waiting = self._waiting, OrderedDict()
        self._bytes -= sum(p.size for parts in waiting.values() for p in parts)
        for job in waiting:
            self._receiver.failed(self.peer, job, None)
        blocks, self._blocks = self._blocks, deque()
        for job, cids in blocks:
            self._receiver.blocks_answered(self.peer, job, cids, None)

    async def _probe(self) -> None:
        """An empty request, until it is answered."""
        pause = self._settings.retry_first
        self._poked = trio.Event()
        while not self._closed:
            with trio.move_on_after(pause):
                await self._poked.wait()
            self._poked = trio.Event()
            if self._closed:
                return
            try:
                await self._ask(STORE, StoreRequest(jobs=()), StoreAnswer, self._settings.request_timeout)
            except (NetworkError, codec.CodecError):
                pause = min(2 * pause, self._settings.retry_most)
                continue
            log.info("copies.node_up", peer=self.peer)
            self.up = True
            self._receiver.came_up(self.peer)
            return

    # --- blocks

    async def _fetch_blocks(self) -> None:
        try:
            while self._blocks:
                job, cids = self._blocks.popleft()
                kept: Collection[str] | None = ()
                try:
                    request = BlocksRequest(job=job, cids=cids, providers=(self._network.peer_id,))
                    kept = (await self._ask(BLOCKS, request, BlocksAnswer, self._settings.blocks_timeout)).kept
                except Unreachable as e:
                    kept = None
                    self._go_down(str(e))
                except (NetworkError, codec.CodecError) as e:
                    log.info("copies.blocks_not_kept", peer=self.peer, job=job, reason=str(e))
                self._receiver.blocks_answered(self.peer, job, cids, kept)
        finally:
            self._block_workers -= 1
