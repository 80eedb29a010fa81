"""What every `ContentStore` must do. A backend's test module subclasses these with its fixtures.

``store`` is one store alone; ``pair`` is (a, b, peer id of a, peer id of b), two stores that reach each other.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor
from p2p.ipfs.api import BadCar, BadCid, BlockMissing, ContentStore, TooLarge
from tests.support.unixfs_reference import CHUNK, pattern, reference

Pair = tuple[ContentStore, ContentStore, str, str]

KUBO = {
    0: "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
    1: "bafkreidogqfzz75tpkmjzjke425xqcrmpcib2p5tg44hnbirumdbpl5adu",
    CHUNK: "bafkreiekhhjkxu4ztk3tyng3er3ijhg56mb44oe3gwbgquhzu4afrg2ksa",
    CHUNK + 1: "bafybeigllfqgfpqydppr6cmv56g7ax4wyhruzswvcefv6j5kj77nzttfki",
    4 * CHUNK: "bafybeifsgx3fpjh6hoktwnskjq2ida7f4wgpcbxaajnhwmpr5jtr2d3pki",
    174 * CHUNK: "bafybeifcjf4m2nz2w3glqyuip43tox6msmtzhqlwqu364wqlfyd2j3jl3u",
    174 * CHUNK + 1: "bafybeicujunaujmn5v5np4ho4mpbdtuj5y52hizzmugbakhv2umbyanwvu",
    175 * CHUNK: "bafybeibmuz7sf2sglzyrclyv545bz6vjlk2qay62vhfimcoyuhmokuqqeq",
    175 * CHUNK + 1: "bafybeibmjbvo2654aurdupnsnlfewkbdsffwastbitmyzaibl7wdwmwzze",
}
"""CID of `pattern(size)` by size."""


def absent(text: bytes = b"nobody has this") -> str:
    return cids.compute(cids.RAW, text).text


async def pieces(data: bytes, size: int) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def nothing() -> AsyncGenerator[str, None]:
    for cid in ():
        yield cid


async def some(*cids: str) -> AsyncGenerator[str, None]:
    for cid in cids:
        yield cid


def link_to(cid: str) -> bytes:
    """DAG-CBOR of a list with one link."""
    return b"\x81\xd8\x2a\x58\x25\x00" + cids.parse(cid).binary


class SingleContract:
    @pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 4 * CHUNK])
    async def test_bytes_come_back_under_kubos_cid(self, store: ContentStore, size: int):
        data = pattern(size)
        cid = await store.add_bytes(data)
        assert cid == KUBO[size]
        assert await store.get_bytes(cid) == data
        assert [piece async for piece in store.iterate(cid)] == [data[i : i + CHUNK] for i in range(0, size, CHUNK)]
        assert await store.fetch(cid) == size

    async def test_a_tree_of_two_levels(self, store: ContentStore, tmp_path: Path):
        size = 175 * CHUNK + 1
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(pattern(size))
        assert await store.add_file(source) == (KUBO[size], size)
        assert await store.export_file(KUBO[size], target) == size
        assert target.read_bytes() == source.read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["source", "target"]

    async def test_the_pieces_of_a_stream_do_not_matter(self, store: ContentStore):
        data = pattern(3 * CHUNK + 7)
        expected, _ = reference(data)
        for size in (1000, CHUNK - 1, CHUNK, 2 * CHUNK + 5, len(data)):
            assert await store.add_stream(pieces(data, size)) == (expected, len(data))

    async def test_a_stream_may_be_empty(self, store: ContentStore):
        assert await store.add_stream(pieces(b"", 1)) == (KUBO[0], 0)

    async def test_a_stream_that_is_too_long(self, store: ContentStore):
        async with aclosing(pieces(bytes(5000), 100)) as chunks:
            with pytest.raises(TooLarge):
                await store.add_stream(chunks, max_bytes=4999)
        assert (await store.add_stream(pieces(bytes(5000), 100), max_bytes=5000))[1] == 5000

    async def test_content_larger_than_allowed_is_refused(self, store: ContentStore, tmp_path: Path):
        small, large = await store.add_bytes(bytes(100)), await store.add_bytes(pattern(CHUNK + 1))
        for cid, size in ((small, 100), (large, CHUNK + 1)):
            with pytest.raises(TooLarge):
                await store.get_bytes(cid, max_bytes=size - 1)
            with pytest.raises(TooLarge):
                await store.export_file(cid, tmp_path / "out", max_bytes=size - 1)
            assert len(await store.get_bytes(cid, max_bytes=size)) == size
        assert not [path for path in tmp_path.iterdir() if path.is_file()]

    async def test_dags(self, store: ContentStore):
        value = {"a": [1, 2.5, None, True, b"x"], "nested": {"text": "é"}}
        cid = await store.put_dag(value)
        assert cid.startswith("bafyrei")
        assert await store.get_dag(cid) == value
        assert dagcbor.decode(await store.get_dag_bytes(cid)) == value
        assert await store.put_dag_bytes(bytes.fromhex("a0")) == await store.put_dag({}, durable=False)

    @pytest.mark.parametrize("data", [b"", b"\xa0\xa0", b"\x18\x01", b"\xa2\x61b\x01\x61a\x01", b"\x81" * 5000 + b"\x00"])
    async def test_dag_bytes_must_be_canonical(self, store: ContentStore, data: bytes):
        with pytest.raises(ValueError, match="canonical"):
            await store.put_dag_bytes(data)

    @pytest.mark.parametrize("value", [(1, 2), {1: 2}, float("nan"), 2**70, {"a": {1}}])
    async def test_values_that_a_dag_cannot_say(self, store: ContentStore, value: object):
        with pytest.raises(ValueError, match=r"."):
            await store.put_dag(value)

    async def test_blocks_that_are_here_are_not_put_again(self, store: ContentStore):
        here = await store.put_dag({"n": 0})
        blocks = [dagcbor.encode({"n": n}) for n in range(4)]
        assert await store.put_lacking(blocks[:2]) == 1
        assert await store.put_lacking([*blocks, blocks[3]]) == 2
        assert await store.put_lacking(blocks) == await store.put_lacking([]) == 0
        assert await store.get_dag(here) == {"n": 0}
        assert [await store.get_dag(cids.compute(cids.DAG_CBOR, data).text) for data in blocks] == [{"n": n} for n in range(4)]

    @pytest.mark.parametrize(
        ("wrong", "error"),
        [(b"\x18\x01", ValueError), (dagcbor.encode(bytes(2 * 1024 * 1024)), TooLarge)],
        ids=["not canonical", "too large"],
    )
    async def test_with_one_that_cannot_be_a_block_none_is_put(self, store: ContentStore, wrong: bytes, error: type[Exception]):
        sound = dagcbor.encode({"sound": True})
        with pytest.raises(error):
            await store.put_lacking([sound, wrong])
        assert not await store.has(cids.compute(cids.DAG_CBOR, sound).text)

    async def test_a_dag_block_has_a_largest_size(self, store: ContentStore):
        with pytest.raises(TooLarge):
            await store.put_dag(bytes(2 * 1024 * 1024))

    async def test_what_is_not_here_is_missing(self, store: ContentStore, tmp_path: Path):
        assert not await store.has(absent())
        for call in (store.get_bytes, store.fetch, store.pin):
            with pytest.raises(BlockMissing):
                await call(absent())
        with pytest.raises(BlockMissing):
            await store.export_file(absent(), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "cid",
        ["", "x", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", KUBO[0].upper(), KUBO[0] + "a", KUBO[0][:-1] + "v", "b" + "!" * 58],
    )
    async def test_only_canonical_cids_are_taken(self, store: ContentStore, cid: str):
        for call in (store.has, store.get_bytes, store.get_dag, store.fetch, store.pin, store.unpin):
            with pytest.raises(BadCid):
                await call(cid)

    async def test_files_and_dags_are_not_mixed_up(self, store: ContentStore):
        dag, file = await store.put_dag({}), await store.add_bytes(b"x")
        with pytest.raises(BadCid):
            await store.get_bytes(dag)
        with pytest.raises(BadCid):
            await store.get_dag(file)

    async def test_pins(self, store: ContentStore):
        a, b = await store.add_bytes(b"a"), await store.add_bytes(pattern(CHUNK + 1))
        await store.pin(a, reason="first")
        await store.pin(b, reason="model")
        await store.pin(a, reason="second")
        assert await store.pins() == {a: "second", b: "model"}
        assert await store.pinned_for(a) == "second"
        await store.unpin(a)
        await store.unpin(a)
        assert await store.pins() == {b: "model"}
        assert await store.pinned_for(a) is None
        assert store.statistics().pins == 1

    async def test_an_archive_of_several_roots_comes_back(self, store: ContentStore):
        file, leaf = await store.add_bytes(pattern(3 * CHUNK + 5)), await store.add_bytes(b"leaf")
        dag = await store.put_dag_bytes(link_to(leaf))
        archive = b"".join([piece async for piece in store.export_car([file, dag, leaf])])
        for size in (777, 100_000, len(archive)):
            found = await store.import_car(pieces(archive, size))
            assert (found.roots, found.blocks) == ((file, dag, leaf), 7)
        assert await store.get_bytes(file) == pattern(3 * CHUNK + 5)
        await store.pin(dag)
        assert await store.get_bytes(leaf) == b"leaf"

    async def test_an_archive_that_is_wrong_is_refused(self, store: ContentStore):
        cid = await store.add_bytes(pattern(CHUNK + 1))
        archive = b"".join([piece async for piece in store.export_car([cid])])
        for wrong in (b"", archive[:-1], archive[:30], archive[:-1] + bytes((archive[-1] ^ 1,)), archive + b"\x05", b"\xff" * 100):
            async with aclosing(pieces(wrong, 1000)) as chunks:
                with pytest.raises(BadCar):
                    await store.import_car(chunks)
        async with aclosing(pieces(archive, 1000)) as chunks:
            with pytest.raises(TooLarge):
                await store.import_car(chunks, max_bytes=len(archive) - 1)
        assert not await store.pins()

    async def test_only_what_is_here_can_be_exported(self, store: ContentStore):
        with pytest.raises(BlockMissing):
            async for _ in store.export_car([absent()]):
                pass
        with pytest.raises(BadCid):
            async for _ in store.export_car(["x"]):
                pass

    async def test_a_pin_may_be_direct(self, store: ContentStore):
        cid = await store.add_bytes(pattern(CHUNK + 1))
        await store.pin(cid, recursive=False)
        assert [pin.recursive for pin in (await store.list_pins()).values()] == [False]
        await store.pin(cid)
        assert [pin.recursive for pin in (await store.list_pins()).values()] == [True]
        assert store.health().ok

    async def test_statistics_count_what_is_stored(self, store: ContentStore):
        for _ in range(2):
            await store.add_bytes(pattern(CHUNK + 1))
        statistics = store.statistics()
        assert statistics.blocks == 3
        assert CHUNK + 1 < statistics.bytes < CHUNK + 300
        assert await store.ok()


class GarbageContract:
    """Of stores that look after their own garbage."""

    async def test_a_direct_pin_holds_one_block(self, store: ContentStore):
        data = pattern(2 * CHUNK)
        cid = await store.add_bytes(data)
        await store.pin(cid, reason="root only", recursive=False)
        (pin,) = (await store.list_pins()).values()
        assert (pin.reason, pin.recursive) == ("root only", False)
        assert pin.at > 0
        with pytest.raises(BlockMissing):
            await store.pin(absent(), recursive=False)
        done = await store.collect(nothing(), grace=0)
        assert (done.blocks, done.bytes, done.needed) == (2, 2 * CHUNK, 1)
        assert await store.has(cid)
        with pytest.raises(BlockMissing):
            await store.pin(cid)

    async def test_a_collection_takes_what_nobody_needs_and_nothing_else(self, store: ContentStore):
        pinned, needed, shared = pattern(3 * CHUNK), pattern(6 * CHUNK)[3 * CHUNK :], await store.add_bytes(b"shared")
        keep, other = await store.add_bytes(pinned), await store.add_bytes(needed)
        dag = await store.put_dag_bytes(link_to(shared))
        garbage = [await store.add_bytes(b"garbage"), await store.add_bytes(b"g" * CHUNK + b"arbage"), await store.put_dag({"n": 1})]
        await store.pin(keep, reason="model")
        before = store.statistics()
        done = await store.collect(some(other, dag, absent(), "no cid at all"), grace=0)
        assert await store.get_bytes(keep) == pinned
        assert await store.get_bytes(other) == needed
        assert await store.get_bytes(shared) == b"shared"
        for cid in garbage:
            assert not await store.has(cid)
        after = store.statistics()
        assert (done.blocks, done.needed, done.recent) == (5, 4 + 4 + 2, 0)
        assert before.bytes - after.bytes == done.bytes == after.collected_bytes
        assert before.blocks - after.blocks == done.blocks == after.collected_blocks

    async def test_what_was_written_or_used_a_moment_ago_stays(self, store: ContentStore):
        cid = await store.add_bytes(b"about to be pinned")
        done = await store.collect(nothing(), grace=60)
        assert (done.blocks, done.recent) == (0, 1)
        assert await store.has(cid)

    async def test_what_was_unpinned_goes(self, store: ContentStore):
        cid = await store.add_bytes(pattern(CHUNK + 1))
        await store.pin(cid)
        assert (await store.collect(nothing(), grace=0)).blocks == 0
        await store.unpin(cid)
        assert (await store.collect(nothing(), grace=0)).blocks == 3
        assert store.statistics().bytes == 0

    async def test_what_is_being_read_stays(self, store: ContentStore):
        data = pattern(40 * CHUNK)
        cid = await store.add_bytes(data)
        got = b""
        async with aclosing(store.iterate(cid)) as pieces:
            async for piece in pieces:
                if not got:
                    assert (await store.collect(nothing(), grace=0)).blocks == 0
                got += piece
        assert got == data
        assert (await store.collect(nothing(), grace=0)).blocks == 41

    async def test_what_is_being_added_stays(self, store: ContentStore):
        data = pattern(40 * CHUNK)

        async def slowly() -> AsyncGenerator[bytes, None]:
            for start in range(0, len(data), CHUNK):
                yield data[start : start + CHUNK]
                if start:
                    await store.collect(nothing(), grace=0)

        cid, _ = await store.add_stream(slowly())
        assert await store.get_bytes(cid) == data


class PairContract:
    async def test_a_file_is_fetched_from_a_named_provider(self, pair: Pair, tmp_path: Path):
        a, b, a_id, _ = pair
        data = pattern(10 * CHUNK + 3)
        cid = await a.add_bytes(data)
        assert await b.export_file(cid, tmp_path / "out", providers=[a_id]) == len(data)
        assert (tmp_path / "out").read_bytes() == data
        assert await b.has(cid)
        assert b.statistics().fetched_blocks == a.statistics().served_blocks == 12
        assert await b.get_bytes(cid) == data
        assert b.statistics().fetched_blocks == 12, "what was fetched is kept"

    async def test_connected_peers_are_asked_when_no_provider_is_named(self, pair: Pair):
        a, b, _, _ = pair
        value = {"n": 1}
        cid = await a.put_dag(value)
        assert await b.get_dag(cid, timeout=5) == value

    async def test_an_unreachable_provider_does_not_matter_when_another_has_it(self, pair: Pair):
        a, b, _, _ = pair
        cid = await a.add_bytes(b"hello")
        stranger = "12D3KooWGRUVh5jLyQk8yC5CJfyGNRfSLi9oQyR1zcWiWGLwkxK1"
        assert await b.get_bytes(cid, providers=[stranger], timeout=20) == b"hello"

    async def test_a_file_is_read_while_it_arrives(self, pair: Pair):
        a, b, a_id, _ = pair
        data = pattern(6 * CHUNK)
        cid = await a.add_bytes(data)
        assert b"".join([piece async for piece in b.iterate(cid, providers=[a_id])]) == data

    async def test_what_nobody_has_is_missing(self, pair: Pair):
        _, b, a_id, _ = pair
        with pytest.raises(BlockMissing):
            await b.get_bytes(absent(), providers=[a_id], timeout=5)

    async def test_a_file_with_a_hole_is_missing_and_what_was_found_is_kept(self, pair: Pair, tmp_path: Path):
        a, b, a_id, _ = pair
        data = pattern(5 * CHUNK)
        cid, blocks = reference(data)
        hole = cids.compute(cids.RAW, data[2 * CHUNK : 3 * CHUNK])
        for binary, block in blocks.items():
            if binary != hole.binary:
                await _put_block(a, binary, block)
        with pytest.raises(BlockMissing):
            await b.export_file(cid, tmp_path / "out", providers=[a_id], timeout=5)
        assert not (tmp_path / "out").exists()
        await _put_block(a, hole.binary, blocks[hole.binary])
        assert await b.get_bytes(cid, providers=[a_id], timeout=5) == data

    async def test_too_large_is_known_from_the_root(self, pair: Pair):
        a, b, a_id, _ = pair
        cid = await a.add_bytes(pattern(8 * CHUNK))
        with pytest.raises(TooLarge):
            await b.get_bytes(cid, providers=[a_id], max_bytes=CHUNK)
        assert b.statistics().fetched_blocks == 1

    async def test_what_was_fetched_can_be_pinned_and_passed_on(self, pair: Pair):
        a, b, a_id, _ = pair
        cid = await a.add_bytes(pattern(3 * CHUNK))
        with pytest.raises(BlockMissing):
            await b.pin(cid)
        await b.fetch(cid, providers=[a_id])
        await b.pin(cid, reason="model")
        assert await b.pins() == {cid: "model"}


async def _put_block(store: ContentStore, binary: bytes, data: bytes) -> None:
    from p2p.ipfs.unixfs import Block

    await store._blocks.put([Block(cids.from_binary(binary), data)], durable=False)  # type: ignore[attr-defined]


async def put_block(store: ContentStore, codec: int, data: bytes) -> str:
    """Any block whatever, as a hostile provider would hold it."""
    cid = cids.compute(codec, data)
    await _put_block(store, cid.binary, data)
    return cid.text
