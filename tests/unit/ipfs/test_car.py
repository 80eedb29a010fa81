"""CAR archives: bytes as other programs write them, and hostile ones."""

from __future__ import annotations

import random

import libipld
import pytest

from p2p.ipfs import car, dagcbor
from p2p.ipfs import cid as cids
from p2p.ipfs.api import BadCar
from p2p.ipfs.memory import MemoryStore
from p2p.ipfs.protobuf import bytes_field, number_field, varint
from p2p.ipfs.unixfs import Block
from tests.support.content_contract import pieces, put_block
from tests.support.unixfs_reference import CHUNK, pattern

RAW = cids.compute(cids.RAW, b"x")
EXAMPLE = bytes.fromhex("3aa265726f6f747381d82a58250001551220" + RAW.digest.hex() + "6776657273696f6e01" + "25" + RAW.binary.hex() + "78")
"""One root, one block, laid out by hand after the specification."""


def read(archive: bytes, size: int = 1 << 20) -> tuple[tuple[str, ...], list[Block]]:
    reader = car.CarReader()
    blocks = [block for start in range(0, len(archive), size) for block in reader.feed(archive[start : start + size])]
    return tuple(root.text for root in reader.close()), blocks


def with_header(plain: object, rest: bytes = b"") -> bytes:
    body = libipld.encode_dag_cbor(plain)
    return varint(len(body)) + body + rest


def test_the_bytes_are_those_of_the_specification():
    assert car.header([RAW]) + car.section(RAW, b"x") == EXAMPLE
    assert read(EXAMPLE) == ((RAW.text,), [Block(RAW, b"x")])


def test_another_implementation_reads_what_we_write():
    values = [dagcbor.encode(value) for value in ({}, {"n": 1})]
    named = [cids.compute(cids.DAG_CBOR, data) for data in values]
    archive = car.header(named) + b"".join(map(car.section, named, values))
    header, blocks = libipld.decode_car(archive)
    assert header == {"roots": [cid.binary for cid in named], "version": 1}
    assert blocks == {named[0].binary: {}, named[1].binary: {"n": 1}}


@pytest.mark.parametrize("count", [0, 1, 23, 24, 255, 256, 1000])
def test_any_number_of_roots(count: int):
    roots = [cids.compute(cids.RAW, b"%d" % i) for i in range(count)]
    assert read(car.header(roots)) == (tuple(root.text for root in roots), [])


def test_too_many_roots():
    with pytest.raises(ValueError, match="1000"):
        car.header([RAW] * 1001)
    many = car.header([RAW] * 1000)
    body = bytearray(many[len(varint(len(many) - 3)) :])
    at = body.index(b"\x99\x03\xe8")
    body[at + 1 : at + 3] = (1001).to_bytes(2, "big")
    body[at + 3 : at + 3] = b"\xd8\x2a\x58\x25\x00" + RAW.binary
    with pytest.raises(BadCar, match="1000"):
        read(varint(len(body)) + bytes(body))


@pytest.mark.parametrize("size", [1, 2, 7, 36, 1000])
def test_the_pieces_do_not_matter(size: int):
    archive = EXAMPLE + b"".join(car.section(cids.compute(cids.RAW, data), data) for data in (b"", b"y" * 300, b"z"))
    assert read(archive, size) == read(archive)


def test_blocks_named_by_version_0_are_dag_pb():
    node = cids.compute(cids.DAG_PB, b"node")
    section = b"\x12\x20" + node.digest + b"node"
    assert read(car.header([node]) + varint(len(section)) + section)[1] == [Block(node, b"node")]


HOSTILE = {
    "nothing": b"",
    "no header, but a block": car.section(RAW, b"x"),
    "version 2": with_header({"version": 2}),
    "version 2 with roots": with_header({"version": 2, "roots": []}),
    "no version": with_header({"roots": []}),
    "no roots": with_header({"version": 1}),
    "roots that are no list": with_header({"version": 1, "roots": {}}),
    "roots that are no links": b"\x37" + car.header([RAW])[1:].replace(b"\xd8\x2a\x58\x25\x00", b"\x58\x24"),
    "a header that is no map": with_header([1]),
    "a header that is no CBOR": b"\x04\xff\xff\xff\xff",
    "a header that is too large": varint(1 << 20) + bytes(1 << 20),
    "an empty part": EXAMPLE + b"\x00",
    "a length that does not end": EXAMPLE + b"\x80" * 10,
    "a length beyond 64 bits": EXAMPLE + b"\xff" * 9 + b"\x7f",
    "a part that is too large": EXAMPLE + varint(1 << 40),
    "wrong bytes": EXAMPLE[:-1] + b"y",
    "cut off": EXAMPLE[:-1],
    "cut off in a length": EXAMPLE + b"\x80",
    "a hash of another kind": EXAMPLE + varint(5) + b"\x01\x55\x00\x01x",
    "another codec": EXAMPLE + varint(37) + b"\x01\x02" + RAW.binary[2:] + b"x",
    "a CID that is cut off": EXAMPLE + varint(10) + RAW.binary[:10],
    "a CID of version 0 that is cut off": EXAMPLE + varint(10) + b"\x12\x20" + bytes(8),
    "a block that is too large": EXAMPLE + car.section(cids.compute(cids.RAW, bytes((2 << 20) + 1)), bytes((2 << 20) + 1)),
}


@pytest.mark.parametrize("archive", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_archives_are_refused(archive: bytes):
    with pytest.raises(BadCar):
        read(archive, 5000)


def test_random_changes_are_refused_or_make_no_difference_to_what_is_named():
    chance = random.Random(3)
    for _ in range(300):
        changed = bytearray(EXAMPLE)
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        try:
            roots, blocks = read(bytes(changed))
        except BadCar:
            continue
        assert roots != (RAW.text,)
        assert all(block.cid.matches(block.data) for block in blocks)


async def test_a_reader_holds_one_part_at_the_most():
    store = MemoryStore()
    data = pattern(20 * CHUNK)
    cid = await store.add_bytes(data)
    archive = b"".join([piece async for piece in store.export_car([cid])])
    reader = car.CarReader()
    for start in range(0, len(archive), 10_000):
        reader.feed(archive[start : start + 10_000])
        assert len(reader._buffer or b"") <= CHUNK + 10_100
    assert reader.close()[0].text == cid


async def test_a_folder_as_kubo_makes_them_is_passed_on_whole():
    store, other = MemoryStore(), MemoryStore()
    file = cids.parse(await store.add_bytes(pattern(CHUNK + 1)))
    link = bytes_field(2, bytes_field(1, file.binary) + bytes_field(2, b"name") + number_field(3, CHUNK + 1))
    folder = await put_block(store, cids.DAG_PB, link + bytes_field(1, number_field(1, 1)))
    await store.pin(folder)
    archive = b"".join([piece async for piece in store.export_car([folder])])
    found = await other.import_car(pieces(archive, 5000))
    assert (found.roots, found.blocks) == ((folder,), 4)
    await other.pin(folder)
    assert await other.get_bytes(file.text) == pattern(CHUNK + 1)
