"""A sorted map as a DAG of DAG-CBOR blocks, written and read in order, in bounded memory.

Leaves are made by the caller from pieces of the key sequence (`dimnode.core.snapshot_chunks`). Above them are index blocks: for each child
its first and last key, how many keys it has, its fingerprint and a link. What a tree shares with the one before is neither made nor
written again; two trees of the same keys and tokens have the same shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from dimnode.core.snapshot_chunks import MOST, Chunk, Chunker
from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor
from p2p.ipfs.api import BlockCorrupt, ContentStore
from p2p.ipfs.cid import Cid

MAX_LEVELS = 12


@dataclass(frozen=True, slots=True)
class Child:
    """A leaf, or an index block of the level below."""

    first: str
    last: str
    count: int
    fingerprint: bytes
    cid: Cid


@dataclass(frozen=True, slots=True)
class Tree:
    root: Cid
    count: int


MakeLeaf = Callable[[Chunk], Awaitable[Cid]]


@dataclass(slots=True, eq=False)
class _Level:
    chunker: Chunker
    children: list[Child] = field(default_factory=list[Child])
    blocks: int = 0
    """Index blocks that were finished here."""


class TreeWriter:
    """``before``: the leaves of the tree before, in order. `add` and `finish` raise `ContentError`."""

    def __init__(self, store: ContentStore, make_leaf: MakeLeaf, before: AsyncGenerator[Child, None] | None = None) -> None:
        self._store = store
        self._make_leaf = make_leaf
        self._before = before
        self._old: Child | None = None
        self._keys = Chunker()
        self._levels: list[_Level] = []
        self._count = 0
        self.leaves = 0
        self.reused = 0
        """Leaves that the tree before had as well."""

    async def add(self, key: str, token: bytes) -> None:
        """Keys come in ascending order; ``token`` changes when what belongs to the key does."""
        self._count += 1
        if (chunk := self._keys.add(key, token)) is not None:
            await self._leaf(chunk)

    async def finish(self) -> Tree | None:
        """None if there was nothing."""
        if (chunk := self._keys.flush()) is not None:
            await self._leaf(chunk)
        for number, level in enumerate(self._levels):  # grows meanwhile
            if not level.blocks:
                top = level.children[0] if number and len(level.children) == 1 else await self._index(number)
                return Tree(top.cid, self._count)
            if level.children:
                await self._close(number)
        return None

    async def _leaf(self, chunk: Chunk) -> None:
        old = await self._same(chunk)
        self.leaves += 1
        self.reused += old is not None
        cid = old.cid if old is not None else await self._make_leaf(chunk)
        await self._put(0, Child(chunk.first, chunk.last, len(chunk.keys), chunk.fingerprint, cid))

    async def _same(self, chunk: Chunk) -> Child | None:
        """The leaf of the tree before that says the same. Both come in order."""
        while self._before is not None and (self._old is None or self._old.last < chunk.first):
            self._old = await anext(self._before, None)
            if self._old is None:
                self._before = None
        old = self._old
        same = old is not None and (old.first, old.last, old.fingerprint) == (chunk.first, chunk.last, chunk.fingerprint)
        return old if same else None

    async def _put(self, number: int, child: Child) -> None:
        if number == len(self._levels):
            self._levels.append(_Level(Chunker(number + 1)))
        level = self._levels[number]
        level.children.append(child)
        if level.chunker.add(child.last, child.fingerprint) is not None:
            await self._close(number)

    async def _close(self, number: int) -> None:
        level = self._levels[number]
        node = await self._index(number)
        level.blocks += 1
        level.children.clear()
        await self._put(number + 1, node)

    async def _index(self, number: int) -> Child:
        children = self._levels[number].children
        entries = [[c.first, c.last, c.count, c.fingerprint, c.cid] for c in children]
        cid = await self._store.put_dag_bytes(dagcbor.encode_linked({"level": number, "children": entries}), durable=False)
        fingerprint = hashlib.sha256(b"".join(c.fingerprint for c in children)).digest()
        return Child(children[0].first, children[-1].last, sum(c.count for c in children), fingerprint, cids.parse(cid))


@dataclass(frozen=True, slots=True)
class Reading:
    """Where blocks of somebody's tree come from."""

    store: ContentStore
    providers: Sequence[str] = ()
    timeout: float = 30.0
    """Seconds for a block."""

    async def block(self, cid: Cid) -> Any:
        """Raises `ContentError`."""
        return await self.store.get_dag(cid.text, providers=self.providers, timeout=self.timeout)


async def leaves(reading: Reading, root: Cid, after: str = "") -> AsyncGenerator[Child, None]:
    """The leaves whose last key comes after ``after``, in order, without their blocks. Raises `ContentError`; `BlockCorrupt` for a tree
    that is not sorted or makes no sense, so that no tree is endless."""
    todo = [(await _children(reading, root, None))]
    latest = ""
    while todo:
        level, children = todo[-1]
        if not children:
            todo.pop()
            continue
        child = children.pop(0)
        if child.last <= after:
            continue
        if level > 0:
            todo.append(await _children(reading, child.cid, level))
            continue
        if child.first <= latest and latest:
            raise BlockCorrupt("a tree whose keys are not in order")
        latest = child.last
        yield child


async def find(reading: Reading, root: Cid, key: str) -> Child | None:
    """The leaf that has the key, if any has. Raises `ContentError`."""
    level, children = await _children(reading, root, None)
    while True:
        child = next((c for c in children if c.first <= key <= c.last), None)
        if child is None or level == 0:
            return child
        level, children = await _children(reading, child.cid, level)


async def _children(reading: Reading, cid: Cid, above: int | None) -> tuple[int, list[Child]]:
    plain = await reading.block(cid)
    try:
        level, entries = plain["level"], plain["children"]
        children = [Child(first, last, count, fingerprint, dagcbor.link_in(link)) for first, last, count, fingerprint, link in entries]
        fine = all(
            isinstance(c.first, str) and isinstance(c.last, str) and c.first <= c.last and isinstance(c.fingerprint, bytes)
            for c in children
        )
        sorted_ = all(a.last < b.first for a, b in pairwise(children))
    except (TypeError, KeyError, ValueError) as error:
        raise BlockCorrupt("not an index block") from error
    if not fine or not sorted_ or not 0 < len(children) <= MOST or type(level) is not int:
        raise BlockCorrupt("an index block that makes no sense")
    if not (0 <= level < MAX_LEVELS if above is None else level == above - 1):
        raise BlockCorrupt("an index block of the wrong level")
    return level, children
