from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.ipfs import cid as cids
from p2p.ipfs.api import BlockCorrupt
from p2p.ipfs.protobuf import Malformed, bytes_field, fields, number_field, read_varint, varint
from p2p.ipfs.unixfs import Block, Layout, decode_node, encode_node
from tests.support.content_contract import KUBO
from tests.support.unixfs_reference import CHUNK, pattern, reference


def lay_out(leaves: list[bytes], max_links: int = 174) -> tuple[str, int, dict[str, bytes]]:
    layout = Layout(max_links)
    blocks: list[Block] = []
    for leaf in leaves:
        cid = cids.compute(cids.RAW, leaf)
        blocks += [Block(cid, leaf), *layout.add(cid, len(leaf))]
    root, size, rest = layout.finish()
    return root.text, size, {block.cid.text: block.data for block in blocks + rest}


def read(cid: str, blocks: dict[str, bytes]) -> bytes:
    if cids.parse(cid).codec == cids.RAW:
        return blocks[cid]
    node = decode_node(blocks[cid])
    data = node.data + b"".join(read(child.cid.text, blocks) for child in node.children)
    assert len(data) == node.size
    return data


@pytest.mark.parametrize("size", sorted(KUBO))
def test_the_layout_is_kubos(size: int):
    data = pattern(size)
    expected, blocks = reference(data)
    root, total, mine = lay_out([data[i : i + CHUNK] for i in range(0, size, CHUNK)] or [b""])
    assert root == expected == KUBO[size]
    assert total == size
    assert {cids.from_binary(binary).text: block for binary, block in blocks.items()} == mine


@given(st.integers(1, 300), st.integers(2, 7))
@settings(deadline=None, max_examples=60)
def test_any_tree_reads_back_and_no_node_is_too_wide(count: int, max_links: int):
    leaves = [bytes([i % 256, i // 256]) for i in range(count)]
    root, size, blocks = lay_out(leaves, max_links)
    assert read(root, blocks) == b"".join(leaves)
    assert size == 2 * count
    for text, block in blocks.items():
        if cids.parse(text).codec == cids.DAG_PB:
            assert 1 <= len(decode_node(block).children) <= max_links


def test_a_file_has_a_leaf():
    with pytest.raises(ValueError, match="leaf"):
        Layout().finish()


def test_a_wrapped_leaf_holds_its_bytes():
    for kind in (0, 2):
        meta = number_field(1, kind) + bytes_field(2, b"hello") + number_field(3, 5)
        assert decode_node(bytes_field(1, meta)).data == b"hello"
    assert decode_node(bytes_field(1, number_field(1, 2) + bytes_field(2, b"abc"))).size == 3


def test_links_of_version_0_name_dag_pb_blocks():
    wrapped = cids.compute(cids.DAG_PB, b"x")
    links = bytes_field(2, bytes_field(1, wrapped.binary[2:]) + number_field(3, 9))
    node = decode_node(links + bytes_field(1, number_field(1, 2) + number_field(3, 5) + number_field(4, 5)))
    assert [child.cid for child in node.children] == [wrapped]


LEAF = cids.compute(cids.RAW, b"x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a",
        b"\xff" * 20,
        bytes_field(1, number_field(1, 1)),
        bytes_field(1, number_field(1, 2)) * 2,
        bytes_field(1, number_field(1, 2)) + number_field(9, 1),
        bytes_field(3, b""),
        bytes_field(2, b"") + bytes_field(1, number_field(1, 2)),
        bytes_field(2, bytes_field(1, b"short")) + bytes_field(1, number_field(1, 2)),
        encode_node([(LEAF, 0, 0)]),
        bytes_field(2, bytes_field(1, LEAF.binary)) + bytes_field(1, number_field(1, 2)),
        bytes_field(1, number_field(1, 2) + number_field(3, 10**12)),
        bytes_field(2, bytes_field(1, LEAF.binary)) + bytes_field(1, number_field(1, 2) + number_field(3, 2) + number_field(4, 1)),
        b"\x0d1234",
    ],
)
def test_unsound_nodes_are_refused(data: bytes):
    with pytest.raises(BlockCorrupt):
        decode_node(data)


@given(st.binary(max_size=120))
def test_random_bytes_are_decoded_or_refused(data: bytes):
    with contextlib.suppress(BlockCorrupt):
        decode_node(data)


@given(st.integers(0, 2**64 - 1))
def test_numbers_come_back(value: int):
    assert read_varint(varint(value), 0) == (value, len(varint(value)))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 11, b"\xff" * 9 + b"\x7f"])
def test_bad_numbers(data: bytes):
    with pytest.raises(Malformed):
        read_varint(data, 0)


def test_fields_that_are_cut_off():
    with pytest.raises(Malformed):
        list(fields(bytes_field(1, b"abc")[:-1]))
