"""What of py-libp2p is replaced, by itself."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.io.utils import read_exactly
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH
from libp2p.stream_muxer.yamux.yamux import YamuxStream

from p2p import patches

patches.apply()


class Pipe:
    """The socket's side of a stream: gives at most so many bytes at a time."""

    def __init__(self, data: bytes, most: int) -> None:
        self.left, self.most, self.reads = data, most, 0

    async def receive_some(self, n: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        size = self.most if n is None else min(n, self.most)
        data, self.left = self.left[:size], self.left[size:]
        return data


def stream(pipe: Any) -> TrioTCPStream:
    return TrioTCPStream(pipe)


@pytest.mark.parametrize("seed", range(20))
async def test_a_buffered_connection_gives_every_byte_once_and_in_order(seed: int) -> None:
    rng = random.Random(seed)
    data = rng.randbytes(400_000)
    pipe = Pipe(data, rng.choice([1000, 10_000, 65_536, 1 << 20]))
    connection = stream(pipe)
    got = b""
    while len(got) < len(data):
        match rng.randrange(4):
            case 0:
                got += await read_exactly(connection, min(rng.randrange(1, 20), len(data) - len(got)))
            case 1:
                got += await read_exactly(connection, min(rng.randrange(1, 70_000), len(data) - len(got)))
            case 2:
                got += await connection.read(rng.randrange(1, 200_000))
            case _:
                got += await connection.read()
    assert got == data
    assert await connection.read(2) == b""


async def test_small_messages_cost_few_reads() -> None:
    pipe = Pipe(bytes(100_000), 1 << 20)
    connection = stream(pipe)
    for _ in range(10_000):
        await read_exactly(connection, 2)
        await read_exactly(connection, 8)
    assert pipe.reads <= 3


async def test_a_cancelled_read_loses_nothing() -> None:
    left, right = trio.testing.memory_stream_pair()
    connection = stream(left)
    with trio.move_on_after(0.01):
        await connection.read(5)
    await right.send_all(b"hello world")
    assert await read_exactly(connection, 5) == b"hello"
    assert await connection.read(100) == b" world"


async def test_the_end_and_a_broken_connection_come_after_what_was_buffered() -> None:
    class Broken(Pipe):
        async def receive_some(self, n: int | None = None) -> bytes:
            if not self.left:
                raise trio.BrokenResourceError
            return await super().receive_some(n)

    connection = stream(Broken(b"abcdef", 100))
    assert [await connection.read(2), await connection.read(4)] == [b"ab", b"cdef"]
    with pytest.raises(ConnectionClosedError):
        await connection.read(2)


async def test_no_frame_takes_two_noise_messages() -> None:
    frames: list[bytes] = []

    class Connection:
        async def _write_frame(self, data: bytes) -> None:
            frames.append(data)

    muxed: Any = YamuxStream.__new__(YamuxStream)
    muxed.conn, muxed.stream_id = Connection(), 1
    muxed.send_closed = muxed.closed = False
    muxed.send_window = 1 << 30
    await YamuxStream.write(muxed, bytes(1_000_000))
    assert all(len(frame) <= MAX_PLAINTEXT_LENGTH for frame in frames)
    assert len(frames) == -(-1_000_000 // (MAX_PLAINTEXT_LENGTH - 12))
