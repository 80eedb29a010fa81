"""Garbage collection: mark what pins and callers need, remove the rest, beside everything else that goes on.

Nothing is taken away from work under way, by three rules. Roots that are being pinned, fetched or read count as needed. A block
that is written, or found here, after a collection began is spared by it. While a batch is being removed, whoever wants to rely on
one of its blocks waits until they are gone, and then finds them missing instead of losing them a moment later. Between a
block's writing and its pin a time of grace protects it.

A kill at any moment leaves less garbage and nothing else: what is removed was not needed before the first removal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Generator, Iterable
from contextlib import contextmanager

import trio

from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor, unixfs
from p2p.ipfs.api import BadCid, BlockCorrupt, Collected
from p2p.ipfs.blocks import Blocks
from p2p.ipfs.cid import Cid
from p2p.ipfs.disk import Kept


class Uses:
    """Which blocks and DAGs are being worked with. All methods belong to the trio thread."""

    def __init__(self) -> None:
        self._roots: Counter[Cid] = Counter()
        self._held: Counter[Cid] = Counter()
        self._since: set[bytes] | None = None
        self._going: frozenset[Cid] = frozenset()
        self._gone = trio.Event()

    @contextmanager
    def of(self, root: Cid) -> Generator[None, None, None]:
        """The DAG below is needed for so long, as far as it is here."""
        self._roots[root] += 1
        try:
            yield
        finally:
            _release(self._roots, [root])

    def roots(self) -> tuple[Cid, ...]:
        """DAGs that are needed now."""
        return tuple(self._roots)

    @contextmanager
    def hold(self, held: list[Cid]) -> Generator[None, None, None]:
        """The blocks in the list, which grows by `spare` with ``hold=held``, are needed for so long."""
        try:
            yield
        finally:
            _release(self._held, held)

    async def spare(self, blocks: Collection[Cid], *, hold: list[Cid] | None = None) -> None:
        """These are about to be written or relied on: a collection that runs does not take them from now on."""
        while not self._going.isdisjoint(blocks):
            await self._gone.wait()
        if self._since is not None:
            self._since.update(cid.digest for cid in blocks)
        if hold is not None:
            self._held.update(blocks)
            hold.extend(blocks)

    @contextmanager
    def collecting(self) -> Generator[tuple[Cid, ...], None, None]:
        """Gives the roots in use now; notes all uses from here on."""
        self._since = set()
        try:
            yield self.roots()
        finally:
            self._since = None

    @contextmanager
    def removing(self, batch: Iterable[Cid]) -> Generator[frozenset[Cid], None, None]:
        """Gives those of the batch that may go, and keeps everybody off them until the block ends."""
        since: Collection[bytes] = self._since or ()
        self._going = frozenset(cid for cid in batch if cid.digest not in since and cid not in self._held and cid not in self._roots)
        try:
            yield self._going
        finally:
            self._going = frozenset()
            self._gone.set()
            self._gone = trio.Event()


def _release(counter: Counter[Cid], released: Iterable[Cid]) -> None:
    for cid in released:
        counter[cid] -= 1
        if counter[cid] <= 0:
            del counter[cid]


def links(cid: Cid, data: bytes) -> list[Cid]:
    """What a block links to, whatever it means. Raises `BlockCorrupt`."""
    match cid.codec:
        case cids.DAG_PB:
            return unixfs.links(data)
        case cids.DAG_CBOR:
            return dagcbor.links(data)
        case _:
            return []


class Marks:
    """What is reachable, as digests: about 150 bytes a block."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._marked: set[bytes] = set()

    def __contains__(self, cid: Cid) -> bool:
        return cid.digest in self._marked

    def block(self, cid: Cid) -> None:
        self._marked.add(cid.digest)

    async def dag(self, root: Cid) -> None:
        """All of it that is here. A block that cannot be read has no children that anybody could find."""
        todo = [root]
        while todo:
            cid = todo.pop()
            if cid.digest in self._marked and cid is not root:
                continue
            self._marked.add(cid.digest)
            if cid.codec != cids.RAW and (data := await self._blocks.get(cid, touch=False)) is not None:
                try:
                    todo.extend(child for child in links(cid, data) if child.digest not in self._marked)
                except BlockCorrupt:
                    continue


def choose(candidates: Iterable[Kept], excess: int) -> list[Cid]:
    """The blocks that were used longest ago and together have ``excess`` bytes."""
    chosen: list[Cid] = []
    for kept in sorted(candidates, key=lambda kept: (-kept.age, kept.cid.text)):
        if excess <= 0:
            break
        chosen.append(kept.cid)
        excess -= kept.size
    return chosen


_INLINE = 4096
"""Up to so many candidates are sorted on the loop."""


async def collect(blocks: Blocks, uses: Uses, needed: AsyncIterator[str], *, down_to: int, grace: float, batch: int) -> Collected:
    """One collection; see `p2p.ipfs.api.ContentStore.collect`."""
    with uses.collecting() as roots:
        marks = await _mark(blocks, roots, needed)
        candidates: list[Kept] = []
        kept = recent = 0
        async for page in blocks.inventory():
            for each in page:
                if each.cid in marks:
                    kept += 1
                elif each.age < grace:
                    recent += 1
                else:
                    candidates.append(each)
        excess = blocks.count()[1] - down_to
        chosen = choose(candidates, excess) if len(candidates) <= _INLINE else await trio.to_thread.run_sync(choose, candidates, excess)
        removed = freed = 0
        for start in range(0, len(chosen), batch):
            with uses.removing(chosen[start : start + batch]) as going:
                freed += await blocks.remove(going)
                removed += len(going)
    return Collected(removed, freed, kept, recent)


async def _mark(blocks: Blocks, roots: Iterable[Cid], needed: AsyncIterator[str]) -> Marks:
    marks = Marks(blocks)
    for root in roots:
        await marks.dag(root)
    for text, pin in blocks.pins().items():
        if pin.recursive:
            await marks.dag(cids.parse(text))
        else:
            marks.block(cids.parse(text))
    async for text in needed:
        try:
            await marks.dag(cids.parse(text))
        except BadCid:
            continue  # somebody's record names something that cannot be here
    return marks
