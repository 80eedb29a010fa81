"""Notices peers that fell silent: a ping of 12 bytes at each interval, and any byte from the peer counts.

libp2p's own monitor opens and negotiates a stream for each ping, which at this interval would cost an idle
node more than everything else together.
"""

from __future__ import annotations

import logging
import struct
from typing import Any

import libp2p.stream_muxer.yamux.yamux as yamux
import trio
from libp2p.abc import INetConn

from p2p.host import close_connection, last_heard, peer_of
from p2p.settings import HealthSettings

log = logging.getLogger(__name__)


def is_silent(now: float, pinged: float, heard: float, settings: HealthSettings) -> bool:
    """Whether a peer that was pinged at ``pinged`` and last heard at ``heard`` counts as gone."""
    return heard < pinged and now - pinged >= settings.timeout


async def watch(connection: INetConn, settings: HealthSettings) -> None:
    """Pings until the connection is closed; closes it when the peer is silent."""
    muxed: Any = connection.muxed_conn
    if not isinstance(muxed, yamux.Yamux):
        return
    while not connection.is_closed:
        pinged = trio.current_time()
        with trio.move_on_after(settings.timeout):
            if not await _ping(muxed):
                return
        if await _heard_since(connection, pinged, settings):
            await _sleep_until_closed(muxed, settings.interval)
            continue
        if connection.is_closed:
            return
        log.info("closing a silent connection", extra={"peer": peer_of(connection)})
        await close_connection(connection)
        return


async def _ping(muxed: yamux.Yamux) -> bool:
    muxed._ping_id = (muxed._ping_id + 1) & 0xFFFFFFFF
    muxed._ping_event = trio.Event()
    muxed._ping_sent_time = trio.current_time()
    frame = struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_PING, yamux.FLAG_SYN, 0, muxed._ping_id)
    try:
        await muxed._write_frame(frame)
    except Exception:  # noqa: BLE001 - the connection broke; libp2p is closing it
        return False
    return True


async def _heard_since(connection: INetConn, pinged: float, settings: HealthSettings) -> bool:
    muxed: Any = connection.muxed_conn
    with trio.move_on_at(pinged + settings.timeout):
        await muxed._ping_event.wait()
    # If this program itself was paused, its sockets may hold the answer: let the reader have a look first.
    await trio.sleep(0.01)
    return not is_silent(trio.current_time(), pinged, last_heard(connection), settings)


async def _sleep_until_closed(muxed: yamux.Yamux, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await muxed.event_shutting_down.wait()
