"""What waits to be given to Kubo."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any, cast

import trio
import trio.testing

from p2p.ipfs import cid as cids
from p2p.ipfs.kubo.blocks import KuboBlocks
from p2p.ipfs.kubo.settings import KuboSettings
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.unixfs import Block


async def test_a_block_whose_writer_was_cancelled_in_the_midst_of_it_is_given_to_kubo_all_the_same(tmp_path: Path) -> None:
    """It is in the spool: whoever wants it next finds it there, and writes nothing."""
    blocks = KuboBlocks(tmp_path, cast(Any, None), StoreSettings(reserve_bytes=0), KuboSettings())
    await blocks.open()
    begun, gate = threading.Event(), threading.Event()
    put = blocks._spool._disk.put

    def slowly(*args: Any, **kwargs: Any) -> None:
        begun.set()
        gate.wait(5)
        put(*args, **kwargs)

    blocks._spool._disk.put = slowly  # type: ignore[method-assign]
    mine, others = (Block(cids.compute(cids.RAW, data), data) for data in (b"mine", b"others"))
    scope = trio.CancelScope()

    async def cancelled() -> None:
        with scope:
            await blocks.put([mine], durable=False)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(blocks.put, [others], durable=False))
        nursery.start_soon(cancelled)
        while not begun.is_set():
            await trio.sleep(0.001)
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked(0.02)
        gate.set()
    assert set(blocks._todo) == {mine.cid, others.cid}
    await blocks.close()


async def test_what_kubo_has_already_becomes_anothers_as_well_and_is_not_written_again(tmp_path: Path) -> None:
    in_kubo, new = (Block(cids.compute(cids.RAW, data), data) for data in (b"in kubo", b"new"))

    class Rpc:
        async def block_stat(self, cid: cids.Cid) -> int | None:
            await trio.lowlevel.checkpoint()
            return len(in_kubo.data) if cid == in_kubo.cid else None

    blocks = KuboBlocks(tmp_path, cast(Any, Rpc()), StoreSettings(reserve_bytes=0), KuboSettings())
    await blocks.open()
    blocks.problem = ""  # Kubo is there
    await blocks.put([in_kubo], durable=False, audience="job 1")
    await blocks._spool.move_out([in_kubo.cid])
    assert await blocks.adopt([in_kubo, new], "job 2") == [new]
    assert await blocks.audiences(in_kubo.cid) == {"job 1", "job 2"}
    await blocks.close()
