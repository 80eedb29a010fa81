"""A tunnel keeps trio's rules for streams, and tells a break from an end."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import trio
import trio.testing

from p2p.host import close_connection, live_connections
from p2p.network import Libp2pNetwork
from tests.support.networks import two

Networks = tuple[Libp2pNetwork, Libp2pNetwork]


@pytest.fixture
async def pair() -> AsyncGenerator[Networks, None]:
    async with two() as networks:
        yield networks


async def joined(a: Libp2pNetwork, b: Libp2pNetwork) -> tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]:
    """Both ends of a tunnel; the handler hands its end out and keeps it open."""
    send, receive = trio.open_memory_channel[trio.abc.HalfCloseableStream](1)

    async def handler(peer: str, stream: trio.abc.HalfCloseableStream) -> None:
        await send.send(stream)
        await trio.sleep_forever()

    b.serve_tunnel("join", handler)
    mine = await a.open_tunnel(b.peer_id, "join", timeout=5)
    with trio.fail_after(5):
        return mine, await receive.receive()


async def test_busy_and_closed(pair: Networks) -> None:
    mine, theirs = await joined(*pair)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_expect_data, theirs)
        await trio.testing.wait_all_tasks_blocked(0.05)
        with pytest.raises(trio.BusyResourceError):
            await theirs.receive_some()
        await mine.send_all(b"data")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_try_to_send, mine, 9_000_000)  # more than the other side takes unread
        await trio.sleep(0.2)
        with pytest.raises(trio.BusyResourceError):
            await mine.send_all(b"x")
        with pytest.raises(trio.BusyResourceError):
            await mine.send_eof()
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError):
        await mine.send_all(b"after half a message was cancelled")
    with pytest.raises(ValueError, match="max_bytes"):
        await theirs.receive_some(0)
    await mine.aclose()
    await mine.aclose()
    for attempt in (mine.send_all(b"x"), mine.send_eof(), mine.receive_some(), mine.wait_send_all_might_not_block()):
        with pytest.raises(trio.ClosedResourceError):
            await attempt


async def test_closing_wakes_the_reader_of_this_side(pair: Networks) -> None:
    mine, _theirs = await joined(*pair)

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await mine.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await mine.aclose()


async def test_each_side_ends_on_its_own(pair: Networks) -> None:
    mine, theirs = await joined(*pair)
    await mine.send_eof()
    await mine.send_eof()
    with trio.fail_after(5):
        assert await theirs.receive_some() == b""
        assert await theirs.receive_some() == b""
        await theirs.send_all(b"still")
        assert await mine.receive_some() == b"still"
    with pytest.raises(trio.ClosedResourceError):
        await mine.send_all(b"x")


async def test_a_cancelled_close_is_a_break_not_an_end(pair: Networks) -> None:
    mine, theirs = await joined(*pair)
    await mine.send_all(b"half")
    await trio.aclose_forcefully(mine)
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
        await _until_end(theirs)


async def test_a_broken_connection_is_a_break_not_an_end(pair: Networks) -> None:
    a, b = pair
    mine, theirs = await joined(a, b)
    await mine.send_all(b"half")
    for connection in live_connections(b.host, a.peer_id):
        await close_connection(connection)
    for stream in (mine, theirs):
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
            await _until_end(stream)


async def test_who_sends_to_a_closed_side_is_told(pair: Networks) -> None:
    mine, theirs = await joined(*pair)
    await mine.aclose()
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
        await _try_to_send(theirs, 9_000_000)


async def test_a_cancelled_read_loses_nothing(pair: Networks) -> None:
    mine, theirs = await joined(*pair)
    total = 0
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for number in range(300):
                await mine.send_all(bytes([number % 256]) * 1000)
            await mine.send_eof()

        nursery.start_soon(send)
        with trio.fail_after(20):
            while True:
                with trio.move_on_after(0.0005) as scope:
                    piece = await theirs.receive_some(777)
                if scope.cancelled_caught:
                    continue
                if not piece:
                    break
                total += len(piece)
    assert total == 300_000


async def _expect_data(stream: trio.abc.ReceiveStream) -> None:
    assert await stream.receive_some() == b"data"


async def _try_to_send(stream: trio.abc.SendStream, size: int) -> None:
    await stream.send_all(bytes(size))


async def _until_end(stream: trio.abc.ReceiveStream) -> None:
    while await stream.receive_some():
        pass
