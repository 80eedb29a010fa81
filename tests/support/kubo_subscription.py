"""Listening to a topic of a Kubo daemon's pubsub, as `ipfs pubsub sub` does. DIM itself never listens there."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urlencode, urlsplit

import h11
import trio

from p2p.ipfs.kubo.address import authorization, endpoint
from p2p.ipfs.kubo.rpc import multibase


class Subscription:
    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._connection = h11.Connection(h11.CLIENT)
        self._text = b""

    async def begin(self, request: h11.Request) -> None:
        await self._stream.send_all(self._connection.send(request) or b"")
        await self._stream.send_all(self._connection.send(h11.EndOfMessage()) or b"")
        answer = await self._event()
        assert isinstance(answer, h11.Response)
        assert answer.status_code == 200

    async def message(self) -> bytes:
        """The next one."""
        while True:
            while b"\n" not in self._text:
                event = await self._event()
                assert isinstance(event, h11.Data), "the daemon ended the subscription"
                self._text += bytes(event.data)
            line, _, self._text = self._text.partition(b"\n")
            said = json.loads(line)
            if "data" in said:  # js-ipfs begins with an empty line
                text = said["data"].removeprefix("u")
                return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

    async def _event(self) -> object:
        while (event := self._connection.next_event()) is h11.NEED_DATA:
            self._connection.receive_data(await self._stream.receive_some(65536))
        return event


@asynccontextmanager
async def subscription(api: str, credentials: str, topic: str) -> AsyncGenerator[Subscription, None]:
    """It hears what is published from now on."""
    where, header = endpoint(api), authorization(credentials)
    parts = urlsplit(where.base_url)
    headers = [("host", parts.netloc), ("content-length", "0"), *([("authorization", header)] if header else [])]
    target = f"{parts.path}pubsub/sub?{urlencode({'arg': multibase(topic)})}"
    stream: trio.abc.Stream
    if where.socket is not None:
        stream = await trio.open_unix_socket(where.socket)
    elif parts.scheme == "https":
        stream = await trio.open_ssl_over_tcp_stream(str(parts.hostname), parts.port or 443)
    else:
        stream = await trio.open_tcp_stream(str(parts.hostname), parts.port or 80)
    try:
        found = Subscription(stream)
        await found.begin(h11.Request(method="POST", target=target, headers=headers))
        yield found
    finally:
        await trio.aclose_forcefully(stream)
