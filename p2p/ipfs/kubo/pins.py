"""The pins that this node makes in a Kubo daemon, beside those that are its owner's.

What is to be made in Kubo is written down here first. So a kill between the two leaves no pin there that nobody knows as
ours: what is written down and turns out not to be in Kubo is dropped when the daemon is reached again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import trio

from p2p.ipfs import cid as cids
from p2p.ipfs.api import Pin
from p2p.ipfs.cid import Cid
from p2p.ipfs.kubo.rpc import KuboRpc, Refused
from p2p.ipfs.pins import Change, DiskPins

log = logging.getLogger(__name__)

_OVER_DIRECT = "over a direct pin"
"""Reason of a recursive pin in whose place its owner had a direct one: that comes back when ours goes."""


class KuboPins:
    """All methods belong to the trio thread. Those that ask Kubo raise `StoreUnavailable`."""

    def __init__(self, path: Path, rpc: KuboRpc) -> None:
        self._rpc = rpc
        self._disk = DiskPins(path)
        """Ours, as they are in Kubo or about to be."""
        self._acting, self._writing = trio.Lock(), trio.Lock()
        self._foreign: dict[str, bool] = {}
        """Pins that Kubo had before, and whether they are recursive, as far as seen since the daemon was last reached."""
        self._held: set[str] = set()
        self._making = ""

    async def open(self) -> None:
        await trio.to_thread.run_sync(self._disk.open)

    async def close(self) -> None:
        await trio.to_thread.run_sync(self._disk.close)

    def to_make(self, wanted: Mapping[str, Pin]) -> list[tuple[str, Pin]]:
        """Also the one that is just being made."""
        ours, making = self._disk.all(), self._making
        lacking = [(text, pin) for text, pin in wanted.items() if text not in ours or text == making]
        return [(text, pin) for text, pin in lacking if not self._foreign_covers(text, pin)]

    def to_remove(self, wanted: Mapping[str, Pin]) -> list[tuple[str, Pin]]:
        """Also those that are to be of another kind."""
        ours = self._disk.all().items()
        differing = [(text, pin) for text, pin in ours if (other := wanted.get(text)) is None or other.recursive != pin.recursive]
        return [(text, pin) for text, pin in differing if text not in self._held]

    async def recognise(self, wanted: Collection[str]) -> None:
        """After an absence: which of ours are still there."""
        async with self._acting:
            recursive, direct = await self._rpc.pin_ls("recursive"), await self._rpc.pin_ls("direct")
            changes: list[Change] = []
            for text, pin in self._disk.all().items():
                over_direct = pin.reason == _OVER_DIRECT
                if text in (recursive if pin.recursive else direct):
                    continue
                if over_direct and text not in direct and text not in wanted:
                    continue  # its owner's pin is to come back
                changes.append((text, _ours(recursive=False) if text in direct and not over_direct else None))
            await self._write(changes)
            self._foreign.clear()

    async def make(self, text: str, pin: Pin) -> None:
        async with self._acting:
            self._making = text
            try:
                await self._make(text, pin)
            finally:
                self._making = ""

    async def _make(self, text: str, pin: Pin) -> None:
        kind = await self._rpc.pin_kind(cids.parse(text))
        if kind is not None:
            self._foreign[text] = kind == "recursive"
            if self._foreign_covers(text, pin):
                return
        await self._write([(text, _ours(recursive=pin.recursive, over_direct=kind is not None))])
        try:
            await self._rpc.pin_add(cids.parse(text), recursive=pin.recursive)
        except Refused:
            await self._write([(text, None)])
            raise

    async def remove(self, text: str, pin: Pin) -> None:
        async with self._acting:
            if text not in self._held:
                await self._remove(text, pin)

    async def _remove(self, text: str, pin: Pin) -> None:
        cid = cids.parse(text)
        await self._rpc.pin_rm(cid, recursive=pin.recursive)
        if pin.reason == _OVER_DIRECT:
            try:
                await self._rpc.pin_add(cid, recursive=False)
            except Refused as error:
                log.warning("the direct pin of %s that was there before cannot be made again: %s", text, error)
        await self._write([(text, None)])

    async def hold(self, roots: Collection[Cid]) -> None:
        """Pins in Kubo, until `release`, what is there whole and not pinned anyway. One caller at a time."""
        self._held.update(root.text for root in roots)
        async with self._acting:
            await self._hold(roots)

    async def _hold(self, roots: Collection[Cid]) -> None:
        recursive, direct = await self._rpc.pin_ls("recursive"), await self._rpc.pin_ls("direct")
        todo = {root.text: root for root in roots if root.text not in recursive}
        ours = self._disk.all()
        await self._write([(t, _ours(recursive=True, over_direct=t in direct and t not in ours)) for t in todo])
        untried = dict(todo)
        refused: list[str] = []
        try:
            for text, root in todo.items():
                there = await self._rpc.block_stat(root) is not None
                del untried[text]
                if not there or not await self._can_pin(root):
                    refused.append(text)
        finally:
            await self._write([(text, ours.get(text)) for text in (*untried, *refused)])

    def release(self) -> None:
        """What was held is `to_remove` now, as far as it is not wanted."""
        self._held.clear()

    async def _can_pin(self, root: Cid) -> bool:
        try:
            await self._rpc.pin_add(root, recursive=True)
        except Refused:
            return False
        return True

    def _foreign_covers(self, text: str, pin: Pin) -> bool:
        recursive = self._foreign.get(text)
        return recursive is not None and (recursive or not pin.recursive)

    async def _write(self, changes: list[Change]) -> None:
        """Not given up half-way, whatever is cancelled meanwhile."""
        if changes:
            with trio.CancelScope(shield=True):
                async with self._writing:
                    await trio.to_thread.run_sync(self._disk.apply, changes)


def _ours(*, recursive: bool, over_direct: bool = False) -> Pin:
    return Pin(_OVER_DIRECT if over_direct else "", recursive, time.time())
