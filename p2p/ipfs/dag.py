"""Walking DAGs without trusting them: what a block links to, and visiting all of one, several at a time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor, unixfs
from p2p.ipfs.api import BlockCorrupt, ContentError
from p2p.ipfs.cid import Cid
from p2p.ipfs.settings import StoreSettings


@dataclass(frozen=True, slots=True)
class Step:
    """A node to visit."""

    cid: Cid
    size: int | None = None
    """Bytes of the file below it, as its parent says."""
    depth: int = 0
    part_of_file: bool = False
    offset: int = 0
    """Of the first byte of the file below it."""


@dataclass(frozen=True, slots=True)
class Visited:
    """A node after its block was read. A file's own bytes come before those of its children."""

    content: bytes
    children: tuple[Step, ...]
    size: int
    """Bytes of the file below, or of the block for DAG-CBOR."""


def visit(step: Step, data: bytes, settings: StoreSettings) -> Visited:
    """Raises `BlockCorrupt` when the block contradicts its parent or goes too deep."""
    if step.depth >= settings.max_depth:
        raise BlockCorrupt("a DAG that is too deep")
    if step.cid.codec == cids.RAW:
        visited = Visited(data, (), len(data))
    elif step.cid.codec == cids.DAG_PB and not step.part_of_file and unixfs.is_directory(data):
        visited = Visited(b"", tuple(Step(link, None, step.depth + 1) for link in unixfs.links(data)), 0)
    elif step.cid.codec == cids.DAG_PB:
        node = unixfs.decode_node(data)
        visited = Visited(node.data, _parts(node, step), node.size)
    elif step.part_of_file:
        raise BlockCorrupt("a file that links to something else")
    else:
        visited = Visited(b"", tuple(Step(link, None, step.depth + 1) for link in dagcbor.links(data)), len(data))
    if step.size is not None and visited.size != step.size:
        raise BlockCorrupt("a block's size is not what its parent says")
    return visited


def _parts(node: unixfs.FileNode, step: Step) -> tuple[Step, ...]:
    parts: list[Step] = []
    offset = step.offset + len(node.data)
    for child in node.children:
        parts.append(Step(child.cid, child.size, step.depth + 1, part_of_file=True, offset=offset))
        offset += child.size
    return tuple(parts)


class Budget:
    """Bounds the nodes visited, so that a small DAG that names itself over and over ends early."""

    def __init__(self, size: int | None, settings: StoreSettings) -> None:
        self._left = settings.max_nodes
        if size is not None:
            self._left = min(self._left, settings.few_leaves + size // settings.min_leaf)

    def spend(self, nodes: int) -> None:
        """Raises `BlockCorrupt`."""
        self._left -= nodes
        if self._left < 0:
            raise BlockCorrupt("a DAG of too many nodes")


class Walk:
    """Visits each different node of a DAG once, ``settings.parallel`` at a time, in no order.

    ``rng``: the children of a node are visited in a random order, so that nodes which fetch the same at the same time have different
    parts to give to each other; without one, always in the same order.

    ``write``: of a file, each part is handed over with its offset as soon as it is here; one that comes several times in the file is
    visited as often."""

    def __init__(
        self,
        need: Callable[[Cid], Awaitable[bytes]],
        here: Callable[[Cid], Awaitable[int | None]],
        settings: StoreSettings,
        rng: random.Random | None = None,
        write: Callable[[int, bytes], Awaitable[None]] | None = None,
    ) -> None:
        self._rng = rng
        self._write = write
        self._need = need
        self._here = here
        self._settings = settings
        self._todo: list[Step] = []
        self._seen: set[tuple[Cid, int | None]] = set()
        self._busy = 0
        self._bell = trio.Event()
        self._error: ContentError | OSError | None = None
        self._budget = Budget(None, settings)

    async def run(self, root: Cid) -> Visited:
        """The root, once all below it is local. Raises what ``need`` and ``write`` raise, `BlockCorrupt`."""
        step = Step(root, part_of_file=self._write is not None)
        top = await self._visit(step)
        self._seen.add((root, None))
        if root.codec == cids.DAG_PB and top.size:
            self._budget = Budget(top.size, self._settings)
        self._push(top.children)
        if self._todo:
            async with trio.open_nursery() as nursery:
                for _ in range(self._settings.parallel):
                    nursery.start_soon(self._work, nursery.cancel_scope)
        if self._error is not None:
            raise self._error
        return top

    def cids(self) -> set[Cid]:
        """All nodes, after `run` without ``write``."""
        return {cid for cid, _ in self._seen}

    def _push(self, children: tuple[Step, ...]) -> None:
        self._budget.spend(len(children))
        if self._rng is not None:
            children = tuple(self._rng.sample(children, len(children)))
        if self._write is not None:
            self._todo.extend(children)
            return
        for child in children:
            key = (child.cid, child.size)
            if key not in self._seen:
                self._seen.add(key)
                self._todo.append(child)

    async def _work(self, scope: trio.CancelScope) -> None:
        while self._todo or self._busy:
            if not self._todo:
                await self._bell.wait()
                continue
            step = self._todo.pop()
            self._busy += 1
            try:
                self._push(await self._children(step))
            except (ContentError, OSError) as error:
                self._error = error
                scope.cancel()
            finally:
                self._busy -= 1
                self._bell.set()
                self._bell = trio.Event()

    async def _children(self, step: Step) -> tuple[Step, ...]:
        if step.cid.codec == cids.RAW and self._write is None:
            size = await self._here(step.cid)
            if size is not None and size == (size if step.size is None else step.size):
                return ()
        return (await self._visit(step)).children

    async def _visit(self, step: Step) -> Visited:
        visited = visit(step, await self._need(step.cid), self._settings)
        if self._write is not None and visited.content:
            await self._write(step.offset, visited.content)
        return visited
