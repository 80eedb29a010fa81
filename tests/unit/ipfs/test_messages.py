"""Bitswap messages, outboxes, and the small print of DAG-CBOR and exports."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor, wire
from p2p.ipfs.api import BlockCorrupt, ContentStore, DiskFull
from p2p.ipfs.embedded import open_embedded
from p2p.ipfs.memory import MemoryExchange, MemoryStore
from p2p.ipfs.outbox import Outbox
from p2p.ipfs.protobuf import Malformed, read_varint
from p2p.ipfs.wants import Ask
from p2p.ipfs.wire import Entry, Envelope
from tests.support.unixfs_reference import CHUNK, pattern

A, B = (cids.compute(cids.RAW, text) for text in (b"a", b"b"))

ENVELOPES = st.builds(
    Envelope,
    wants=st.lists(st.builds(Entry, st.binary(max_size=40), st.booleans(), st.booleans(), st.booleans()), max_size=5).map(tuple),
    full=st.booleans(),
    blocks=st.lists(st.tuples(st.binary(max_size=5), st.binary(max_size=50)), max_size=3).map(tuple),
    presences=st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=5).map(tuple),
)


@given(ENVELOPES)
def test_messages_come_back(envelope: Envelope):
    message = wire.encode(envelope)
    length, offset = read_varint(message, 0)
    assert length == len(message) - offset
    assert wire.decode(message[offset:]) == envelope


@given(st.binary(max_size=60))
def test_random_bytes_are_a_message_or_malformed(data: bytes):
    try:
        assert isinstance(wire.decode(data), Envelope)
    except Malformed:
        return


def test_a_message_as_the_specification_has_it():
    entry = b"\x0a\x24" + A.binary + b"\x10\x01" + b"\x28\x01"
    wantlist = b"\x0a" + bytes([len(entry)]) + entry
    assert wire.decode(b"\x0a" + bytes([len(wantlist)]) + wantlist).wants == (Entry(A.binary, block=True),)


@pytest.mark.parametrize(("prefix", "expected"), [(A.prefix, A), (b"", None), (b"\x00\x70\x12\x20", None), (b"\x01\x55\x13\x20", None)])
def test_received_blocks_are_named_by_their_content(prefix: bytes, expected: cids.Cid | None):
    assert wire.identify(prefix, b"a") == expected


async def test_an_outbox_keeps_the_last_word_about_a_block():
    box = Outbox(2)
    box.ask(A, Ask.HAVE)
    box.ask(B, Ask.BLOCK)
    box.ask(A, Ask.CANCEL)
    assert box.take_requests() == (Entry(B.binary, block=True), Entry(A.binary, block=True, cancel=True))
    assert box.take_requests() == ()
    assert not box


async def test_an_outbox_is_bounded_and_says_so_to_the_peer():
    box = Outbox(2)
    entries = [Entry(bytes([i]), block=True, answer=i % 2 == 0) for i in range(10)]
    box.asked_by_peer(tuple(entries), full=False)
    assert box.take_absent() == [b"\x02", b"\x04"]
    box.asked_by_peer((Entry(b"\x00", block=True, cancel=True),), full=False)
    assert box.oldest(5) == [b"\x01"]
    assert [box.take(b"\x01"), box.take(b"\x01")] == [entries[1], None]
    box.asked_by_peer((entries[3], entries[4]), full=True)
    assert box.oldest(1) == [b"\x03"]
    box.asked_by_peer((Entry(b"\x03", block=True, cancel=True),), full=False)
    assert box.take(b"\x03") is None
    assert box.oldest(5) == [b"\x04"]


async def test_waiting_for_an_outbox_ends_when_there_is_work():
    box = Outbox(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.wait)
        await trio.testing.wait_all_tasks_blocked()
        box.ask(A, Ask.BLOCK)


def test_values_nested_too_deeply_are_refused():
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="deep"):
        dagcbor.encode(value)


@pytest.mark.parametrize("tail", [b"\x41\x00", b"\x58\x25\x00" + b"\x01\x72\x12\x20" + bytes(32)])
def test_links_that_dim_cannot_follow(tail: bytes):
    with pytest.raises(BlockCorrupt):
        dagcbor.links(b"\xd8\x2a" + tail)


async def test_an_export_to_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = MemoryStore()
    cid = await store.add_bytes(pattern(CHUNK + 1))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFull):
            await store.export_file(cid, tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        await store.export_file(cid, tmp_path / "no" / "out")
    assert not list(tmp_path.iterdir())


async def test_a_disk_that_fills_up_during_a_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub = MemoryExchange()
    a, b = MemoryStore("a", hub), MemoryStore("b", hub)
    cid = await a.add_bytes(pattern(4 * CHUNK))

    async def full(blocks: object, *, durable: bool, audience: str = "") -> None:
        raise DiskFull("no space left")

    monkeypatch.setattr(b._blocks, "put", full)
    with pytest.raises(DiskFull):
        await b.fetch(cid)
    with pytest.raises(DiskFull):
        async for _ in b.iterate(cid):
            pass


async def test_an_embedded_store_can_be_closed_while_it_is_used(tmp_path: Path):
    with trio.move_on_after(0.05):
        async with open_embedded(tmp_path) as store, trio.open_nursery() as nursery:
            for i in range(8):
                nursery.start_soon(_write_for_ever, store, i)
    async with open_embedded(tmp_path) as store:
        assert not list((tmp_path / "tmp").iterdir())


async def _write_for_ever(store: ContentStore, number: int) -> None:
    count = 0
    while True:
        await store.add_bytes(b"%d %d" % (number, count))
        count += 1
