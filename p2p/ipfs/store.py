"""`ContentStore` over three seams: where blocks are kept, how peers are asked for them, and settings.

The embedded and the memory store are this class with different parts. Every write passes `_keep`, which keeps a garbage
collection off the blocks and, when the store is full, asks whoever looks after it to make room.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any, Protocol, TypeVar

import trio

from p2p.ipfs import car, dagcbor
from p2p.ipfs import cid as cids
from p2p.ipfs.api import BadCid, BlockMissing, Collected, ContentError, DiskFull, Imported, Pin, StoreHealth, StoreStatistics, TooLarge
from p2p.ipfs.blocks import Blocks
from p2p.ipfs.cid import Cid
from p2p.ipfs.dag import Budget, Step, Visited, Walk, visit
from p2p.ipfs.export import read_pieces, whole_file
from p2p.ipfs.garbage import Uses, collect, links
from p2p.ipfs.settings import MAX_BLOCK, StoreSettings
from p2p.ipfs.traffic import Traffic
from p2p.ipfs.unixfs import Block, Layout

T = TypeVar("T")
_INLINE = 64 * 1024
"""Up to this many bytes are hashed and checked on the loop."""


class Exchange(Protocol):
    traffic: Traffic

    async def fetch_block(self, cid: Cid, providers: Collection[str], timeout: float, *, private: bool = False) -> bytes:
        """A verified block. ``private``: strangers are not asked who has it. Raises `BlockMissing`, `BlockCorrupt`."""
        ...


class _State:
    """What a store and its private twins share."""

    def __init__(self) -> None:
        self.collected_blocks = self.collected_bytes = 0
        self.full = False
        """The last write found no room."""
        self.make_room: Callable[[], Awaitable[bool]] | None = None


class Store:
    """``rng``: makes the order in which the parts of a DAG are fetched."""

    def __init__(
        self, backend: str, blocks: Blocks, exchange: Exchange | None, settings: StoreSettings, rng: random.Random | None = None
    ) -> None:
        self._rng = rng
        self.backend = backend
        self._blocks = blocks
        self._exchange = exchange
        self._settings = settings
        self._uses = Uses()
        self._collecting = trio.Lock()
        self._state = _State()
        self._audience = ""
        self.on_kept: Callable[[Collection[Cid]], None] | None = None
        """Told of blocks that are in the store from now on."""

    @property
    def make_room(self) -> Callable[[], Awaitable[bool]] | None:
        """Called when a write finds the store full, by the task that writes; whether it is worth another try."""
        return self._state.make_room

    @make_room.setter
    def make_room(self, make_room: Callable[[], Awaitable[bool]] | None) -> None:
        self._state.make_room = make_room

    def private_to(self, audience: str) -> Store:
        twin = copy.copy(self)
        twin._audience = audience
        return twin

    async def open_to_all(self, cid: str) -> None:
        root = cids.parse(cid)
        with self._uses.of(root):
            await self._blocks.open_to_all(await self._whole(root))

    async def rename_audience(self, old: str, new: str) -> None:
        await self._blocks.rename_audience(old, new)

    async def forget_audiences(self, names: Collection[str]) -> None:
        await self._blocks.forget_audiences(names)

    async def is_public(self, cid: str) -> bool:
        """Whether the block is here and everybody's."""
        root = cids.parse(cid)
        found = (await self._blocks.look([root])).get(root)
        return found is not None and not found.audiences

    async def ok(self) -> bool:
        await trio.lowlevel.checkpoint()
        return not self._state.full

    def health(self) -> StoreHealth:
        return StoreHealth(not self._state.full, problem="the store is full" if self._state.full else "")

    async def has(self, cid: str) -> bool:
        return await self._blocks.has(cids.parse(cid))

    # Adding

    async def put_dag(self, value: Any, *, durable: bool = True) -> str:
        """Raises `ValueError` for what DAG-CBOR cannot say (tuples, NaN, integers beyond 64 bits)."""
        return await self._put_cbor(dagcbor.encode(value), durable)

    async def put_dag_bytes(self, data: bytes, *, durable: bool = True) -> str:
        """Raises `ValueError` when ``data`` is not canonical DAG-CBOR."""
        _check_canonical([data])
        return await self._put_cbor(data, durable)

    async def put_lacking(self, blocks: Sequence[bytes]) -> int:
        _check_sizes(blocks)
        made = {block.cid: block for block in await _short(_cbor_blocks, blocks)}
        if not made:
            return 0
        await self._uses.spare(list(made))  # or a collection under way might take what is here
        lacking = await self._with_room(lambda: self._blocks.adopt(list(made.values()), self._audience))
        if lacking:  # what is here is not looked at again: after a start that is nearly all there is
            new = [block.data for block in lacking]
            await _short(_check_canonical, new)
            await self._keep(lacking, False)
        return len(lacking)

    async def add_bytes(self, data: bytes, *, durable: bool = True) -> str:
        if len(data) <= self._settings.chunk:
            block = Block(cids.compute(cids.RAW, data), data)
            await self._keep([block], durable)
            return block.cid.text
        async with aclosing(_once(data)) as pieces:
            cid, _ = await self._add(pieces, None, durable)
        return cid

    async def add_stream(self, chunks: AsyncIterator[bytes], *, max_bytes: int | None = None) -> tuple[str, int]:
        return await self._add(chunks, max_bytes, True)

    async def add_file(self, path: Path) -> tuple[str, int]:
        async with aclosing(read_pieces(path, self._settings.chunk * self._settings.write_batch)) as pieces:
            return await self._add(pieces, None, True)

    # Reading

    async def get_dag(self, cid: str, *, providers: Collection[str] = (), timeout: float = 30.0) -> Any:
        return dagcbor.decode(await self.get_dag_bytes(cid, providers=providers, timeout=timeout))

    async def get_dag_bytes(self, cid: str, *, providers: Collection[str] = (), timeout: float = 30.0) -> bytes:
        parsed = cids.parse(cid)
        if parsed.codec != cids.DAG_CBOR:
            raise BadCid("not the CID of a DAG-CBOR block")
        return await self._need(parsed, providers, timeout)

    async def get_bytes(self, cid: str, *, providers: Collection[str] = (), timeout: float = 30.0, max_bytes: int = 1 << 30) -> bytes:
        parsed = cids.parse(cid)
        with self._uses.of(parsed):
            data = await self._bounded_root(parsed, providers, timeout, max_bytes)
            if parsed.codec == cids.RAW:
                return data
            await self.fetch(cid, providers=providers, timeout=timeout)
            async with aclosing(self.iterate(cid, providers=providers, timeout=timeout)) as pieces:
                return b"".join([piece async for piece in pieces])

    async def iterate(self, cid: str, *, providers: Collection[str] = (), timeout: float = 30.0) -> AsyncGenerator[bytes, None]:
        root = _file_cid(cid)
        todo = [Step(root, part_of_file=True)]
        budget: Budget | None = None
        with self._uses.of(root):
            while todo:
                run = self._next_run(todo)
                for step, data in zip(run, await self._load(run, providers, timeout), strict=True):
                    visited = visit(step, data, self._settings)
                    budget = budget or Budget(visited.size, self._settings)
                    budget.spend(1 + len(visited.children))
                    todo.extend(reversed(visited.children))
                    if visited.content:
                        yield visited.content

    async def export_file(
        self, cid: str, path: Path, *, providers: Collection[str] = (), timeout: float = 30.0, max_bytes: int | None = None
    ) -> int:
        root = _file_cid(cid)
        with self._uses.of(root):
            await self._bounded_root(root, providers, timeout, max_bytes)
            async with whole_file(path) as file:
                return (await self._walk(root, providers, timeout, file.write)).size

    async def fetch(self, cid: str, *, providers: Collection[str] = (), timeout: float = 30.0) -> int:
        root = cids.parse(cid)
        with self._uses.of(root):
            return (await self._walk(root, providers, timeout)).size

    async def _walk(
        self, root: Cid, providers: Collection[str], timeout: float, write: Callable[[int, bytes], Awaitable[None]] | None = None
    ) -> Visited:
        async def need(each: Cid) -> bytes:
            return await self._need(each, providers, timeout)

        return await Walk(need, self._here, self._settings, self._rng, write).run(root)

    # Archives

    async def export_car(
        self, roots: Sequence[str], *, providers: Collection[str] = (), timeout: float = 30.0
    ) -> AsyncGenerator[bytes, None]:
        parsed = [cids.parse(root) for root in roots]
        with ExitStack() as uses:
            for root in parsed:
                uses.enter_context(self._uses.of(root))
            yield car.header(parsed)
            todo, seen = parsed[::-1], set[Cid]()
            budget = Budget(None, self._settings)
            while todo:
                cid = todo.pop()
                if cid in seen:
                    continue
                seen.add(cid)
                data = await self._need(cid, providers, timeout)
                children = links(cid, data)
                budget.spend(len(children))
                todo.extend(child for child in reversed(children) if child not in seen)
                yield car.section(cid, data)

    async def import_car(self, chunks: AsyncIterator[bytes], *, max_bytes: int | None = None) -> Imported:
        reader = car.CarReader()
        written: list[Cid] = []
        count = size = 0
        with self._uses.hold(written):
            async with aclosing(_batches(chunks, self._settings.chunk * self._settings.write_batch, max_bytes)) as batches:
                async for batch in batches:
                    blocks = await trio.to_thread.run_sync(reader.feed, batch)
                    await self._keep(blocks, False, written)
                    count += len(blocks)
                    size += sum(len(block.data) for block in blocks)
            roots = reader.close()
            await self._blocks.sync(written)
        return Imported(tuple(root.text for root in roots), count, size)

    # Keeping

    async def pin(self, cid: str, *, reason: str = "", recursive: bool = True) -> None:
        root = cids.parse(cid)
        with self._uses.of(root):
            found = await self._whole(root) if recursive else {root}
            await self._local(root)
            await self._blocks.sync(found)
            await self._blocks.pin(root, Pin(reason, recursive, time.time()))

    async def unpin(self, cid: str) -> None:
        await self._blocks.pin(cids.parse(cid), None)

    async def pins(self) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        return {cid: pin.reason for cid, pin in self._blocks.pins().items()}

    async def pinned_for(self, cid: str) -> str | None:
        await trio.lowlevel.checkpoint()
        pin = self._blocks.pin_of(cids.parse(cid))
        return pin.reason if pin is not None else None

    async def list_pins(self) -> dict[str, Pin]:
        await trio.lowlevel.checkpoint()
        return self._blocks.pins()

    async def collect(self, needed: AsyncIterator[str], *, down_to: int = 0, grace: float | None = None) -> Collected:
        grace = self._settings.grace if grace is None else grace
        async with self._collecting:
            done = await collect(self._blocks, self._uses, needed, down_to=down_to, grace=grace, batch=self._settings.collect_batch)
        self._state.collected_blocks += done.blocks
        self._state.collected_bytes += done.bytes
        return done

    def statistics(self) -> StoreStatistics:
        blocks, size = self._blocks.count()
        traffic = self._exchange.traffic if self._exchange is not None else Traffic()
        return StoreStatistics(
            blocks=blocks,
            bytes=size,
            pins=len(self._blocks.pins()),
            fetched_blocks=traffic.fetched_blocks,
            fetched_bytes=traffic.fetched_bytes,
            served_blocks=traffic.served_blocks,
            served_bytes=traffic.served_bytes,
            refused_blocks=traffic.refused_blocks,
            withheld_blocks=traffic.withheld_blocks,
            max_bytes=self._settings.max_bytes,
            collected_blocks=self._state.collected_blocks,
            collected_bytes=self._state.collected_bytes,
        )

    # Parts

    async def _put_cbor(self, data: bytes, durable: bool) -> str:
        _check_sizes([data])
        (block,) = _cbor_blocks([data])
        await self._keep([block], durable)
        return block.cid.text

    async def _keep(self, blocks: list[Block], durable: bool, held: list[Cid] | None = None) -> None:
        """Blocks with the right hashes go into the store; into ``held`` go those that must stay until more is written."""
        mine: list[Cid] = []
        with self._uses.hold(mine):
            await self._uses.spare([block.cid for block in blocks], hold=mine)
            if held is not None:
                await self._uses.spare(mine, hold=held)
            await self._with_room(lambda: self._blocks.put(blocks, durable=durable, audience=self._audience))
            self._state.full = False
        if self.on_kept is not None:
            self.on_kept([block.cid for block in blocks])

    async def _with_room(self, write: Callable[[], Awaitable[T]]) -> T:
        """Once more, if there was no room and some was made."""
        try:
            return await write()
        except DiskFull:
            self._state.full = True
            if self.make_room is None or not await self.make_room():
                raise
            return await write()

    async def _add(self, pieces: AsyncIterator[bytes], max_bytes: int | None, durable: bool) -> tuple[str, int]:
        """fsync comes at the end, for all of a file together."""
        layout = Layout()
        written: list[Cid] = []
        with self._uses.hold(written):
            async with aclosing(_batches(pieces, self._settings.chunk * self._settings.write_batch, max_bytes)) as batches:
                async for batch in batches:
                    leaves = await trio.to_thread.run_sync(_leaves, batch, self._settings.chunk)
                    inner = [block for leaf in leaves for block in layout.add(leaf.cid, len(leaf.data))]
                    await self._keep(leaves + inner, False, written)
            root, size, rest = layout.finish()
            await self._keep(rest, False, written)
            if durable:
                await self._blocks.sync(written)
        return root.text, size

    async def _need(self, cid: Cid, providers: Collection[str], timeout: float) -> bytes:
        """A block from here, else from peers; what is fetched is kept."""
        await self._uses.spare([cid])
        data = await self._blocks.get(cid)
        if data is not None:
            await self._share(cid)
            return data
        if self._exchange is None:
            raise BlockMissing(f"{cid} is not here")
        data = await self._exchange.fetch_block(cid, providers, timeout, private=bool(self._audience))
        await self._keep([Block(cid, data)], False)
        return data

    async def _here(self, cid: Cid) -> int | None:
        """The size of a block that is here and stays for now."""
        await self._uses.spare([cid])
        size = await self._blocks.size(cid)
        if size is not None:
            await self._blocks.touch(cid)
            await self._share(cid)
        return size

    async def _share(self, cid: Cid) -> None:
        """A block that was here before: this audience uses it, too."""
        if self._audience:
            await self._blocks.share(cid, self._audience)

    async def _whole(self, root: Cid) -> set[Cid]:
        """All blocks of a DAG. Raises `BlockMissing` if one is not here."""

        async def here(cid: Cid) -> int | None:
            await self._uses.spare([cid])
            return await self._blocks.size(cid)

        walk = Walk(self._local, here, self._settings)
        await walk.run(root)
        return walk.cids()

    async def _local(self, cid: Cid) -> bytes:
        await self._uses.spare([cid])
        data = await self._blocks.get(cid, touch=False)
        if data is None:
            raise BlockMissing(f"{cid} is not here")
        return data

    async def _bounded_root(self, cid: Cid, providers: Collection[str], timeout: float, max_bytes: int | None) -> bytes:
        """The root block of a file that is small enough (its parts must add up to the size that it says)."""
        data = await self._need(_file_cid(cid.text), providers, timeout)
        if max_bytes is not None and visit(Step(cid, part_of_file=True), data, self._settings).size > max_bytes:
            raise TooLarge(f"content of more than {max_bytes} bytes")
        return data

    def _next_run(self, todo: list[Step]) -> list[Step]:
        """Takes the next node in order, and with a leaf the leaves that follow it."""
        run = [todo.pop()]
        while todo and len(run) < self._settings.readahead and run[-1].cid.codec == todo[-1].cid.codec == cids.RAW:
            run.append(todo.pop())
        return run

    async def _load(self, run: list[Step], providers: Collection[str], timeout: float) -> list[bytes]:
        if len(run) == 1:
            return [await self._need(run[0].cid, providers, timeout)]
        loaded: dict[Cid, bytes] = {}
        errors: list[ContentError] = []

        async def load(cid: Cid, scope: trio.CancelScope) -> None:
            try:
                loaded[cid] = await self._need(cid, providers, timeout)
            except ContentError as error:
                errors.append(error)
                scope.cancel()

        async with trio.open_nursery() as nursery:
            for cid in {step.cid for step in run}:
                nursery.start_soon(load, cid, nursery.cancel_scope)
        if errors:
            raise errors[0]
        return [loaded[step.cid] for step in run]


def _file_cid(text: str) -> Cid:
    cid = cids.parse(text)
    if cid.codec == cids.DAG_CBOR:
        raise BadCid("the CID of a DAG-CBOR block, not of a file")
    return cid


async def _once(data: bytes) -> AsyncGenerator[bytes, None]:
    await trio.lowlevel.checkpoint()
    yield data


async def _batches(pieces: AsyncIterator[bytes], size: int, max_bytes: int | None) -> AsyncGenerator[bytes, None]:
    """Pieces of exactly ``size`` bytes, then a last one that is shorter, and empty only if there was nothing."""
    buffer = bytearray()
    total = 0
    async for piece in pieces:
        total += len(piece)
        if max_bytes is not None and total > max_bytes:
            raise TooLarge(f"content of more than {max_bytes} bytes")
        view = memoryview(piece)
        while len(view):
            room = size - len(buffer)
            buffer += view[:room]
            view = view[room:]
            if len(buffer) == size:
                yield bytes(buffer)
                buffer.clear()
    if buffer or not total:
        yield bytes(buffer)


def _leaves(data: bytes, chunk: int) -> list[Block]:
    parts = [data[start : start + chunk] for start in range(0, len(data), chunk)] or [b""]
    return [Block(cids.compute(cids.RAW, part), part) for part in parts]


async def _short(work: Callable[[Sequence[bytes]], T], what: Sequence[bytes]) -> T:
    """On the loop if it is little, else in a thread."""
    return work(what) if sum(map(len, what)) <= _INLINE else await trio.to_thread.run_sync(work, what)


def _check_canonical(blocks: Sequence[bytes]) -> None:
    if not all(map(dagcbor.is_canonical, blocks)):
        raise ValueError("not canonical DAG-CBOR")


def _check_sizes(blocks: Sequence[bytes]) -> None:
    if any(len(data) > MAX_BLOCK for data in blocks):
        raise TooLarge(f"a DAG-CBOR block may have {MAX_BLOCK} bytes at most: store large parts as files")


def _cbor_blocks(blocks: Sequence[bytes]) -> list[Block]:
    return [Block(cids.compute(cids.DAG_CBOR, data), data) for data in blocks]
