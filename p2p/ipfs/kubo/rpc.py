"""Calls to a Kubo daemon: https://docs.ipfs.tech/reference/kubo/rpc/ and nothing about what they are for.

Whatever keeps an answer from coming (refused, timed out, not HTTP, a status or a body that makes no sense) is
`StoreUnavailable`; what Kubo itself refuses is `Refused`, with its message for the log. Blocks are checked before they are given out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import httpx2
import trio

from p2p.ipfs import cid as cids
from p2p.ipfs.api import BadCid, BlockCorrupt, StoreUnavailable
from p2p.ipfs.cid import Cid
from p2p.ipfs.kubo.address import authorization, endpoint
from p2p.ipfs.kubo.settings import RpcSettings
from p2p.ipfs.settings import MAX_BLOCK

_CODECS = {cids.RAW: "raw", cids.DAG_PB: "dag-pb", cids.DAG_CBOR: "dag-cbor"}
_MAX_ANSWER = 64 << 20


class Refused(StoreUnavailable):
    """Kubo's answer is an error of its own."""


class KuboRpc:
    """Open with `open_rpc`. All calls raise `StoreUnavailable`."""

    def __init__(self, client: httpx2.AsyncClient, settings: RpcSettings) -> None:
        self._client = client
        self._settings = settings
        self._old_options = False

    async def id(self) -> Mapping[str, Any]:
        """Peer id (``ID``), ``Addresses``, ``AgentVersion``."""
        return await self._call("id")

    # Blocks

    async def block_put(self, cid: Cid, data: bytes) -> None:
        """Raises `Refused` also when the daemon makes another CID of it."""
        old_options = self._old_options
        if await self._put(cid, data, old_options) == cid.text:
            return
        # Other implementations, and Kubo before 0.10, know the codec by another name.
        if await self._put(cid, data, not old_options) != cid.text:
            raise Refused("the daemon stores a block under another CID")
        self._old_options = not old_options

    async def block_get(self, cid: Cid, *, offline: bool, timeout: float | None = None) -> bytes | None:
        """None if it is not there; ``offline``: in the daemon's own repository, else it asks its peers. Raises `BlockCorrupt`."""
        options = {"arg": cid.text, **({"offline": "true"} if offline else {})}
        try:
            data = await self._bytes("block/get", options, timeout=timeout, limit=MAX_BLOCK)
        except Refused as error:
            if _says_missing(error):
                return None
            raise
        if not cid.matches(data):
            raise BlockCorrupt(f"the daemon gave wrong bytes for {cid}")
        return data

    async def block_stat(self, cid: Cid) -> int | None:
        """The size of a block in the daemon's own repository."""
        try:
            found = await self._call("block/stat", {"arg": cid.text, "offline": "true"})
        except Refused as error:
            if _says_missing(error):
                return None
            raise
        return _number(found, "Size")

    # Pins

    async def pin_add(self, cid: Cid, *, recursive: bool) -> None:
        """All of it must be in the daemon's repository."""
        await self._call("pin/add", {"arg": cid.text, "recursive": _flag(recursive), "offline": "true"})

    async def pin_rm(self, cid: Cid, *, recursive: bool) -> None:
        """What is not pinned does not matter."""
        try:
            await self._call("pin/rm", {"arg": cid.text, "recursive": _flag(recursive)})
        except Refused as error:
            if "not pinned" not in str(error):
                raise

    async def pin_kind(self, cid: Cid) -> Literal["recursive", "direct"] | None:
        """How it is pinned by itself; None also where it is only a part of something pinned."""
        try:
            found = await self._call("pin/ls", {"arg": cid.text})
        except Refused as error:
            if "not pinned" in str(error):
                return None
            raise
        kinds = {str(_mapping(pin).get("Type", "")) for pin in _mapping(found.get("Keys")).values()}
        return "recursive" if "recursive" in kinds else "direct" if "direct" in kinds else None

    async def pin_ls(self, kind: str) -> frozenset[str]:
        """CIDs of all ``recursive`` or ``direct`` pins."""
        return frozenset(_mapping((await self._call("pin/ls", {"type": kind, "cid-base": "base32"})).get("Keys")))

    # The repository

    async def repo_stat(self) -> Mapping[str, Any]:
        """``RepoSize``, ``StorageMax`` in bytes, ``NumObjects``."""
        return await self._call("repo/stat")

    async def repo_gc(self, timeout: float) -> int:
        """Removes everything that is not pinned there; returns how many blocks."""
        text = await self._bytes("repo/gc", {}, timeout=timeout, limit=_MAX_ANSWER)
        return sum("Key" in line for line in _lines(text))

    # Files and values, made by the daemon

    async def add(self, pieces: AsyncIterator[bytes], *, pin: bool) -> str:
        """`ipfs add` with the options under which its CIDs are DIM's; returns the root."""
        options = {
            "cid-version": "1", "raw-leaves": "true", "chunker": "size-262144", "pin": _flag(pin), "quieter": "true", "progress": "false",
            "cid-base": "base32",
        }  # fmt: skip
        data = b"".join([piece async for piece in pieces])
        lines = _lines(await self._bytes("add", options, data=data, limit=_MAX_ANSWER))
        if not lines:
            raise StoreUnavailable("the daemon did not say what it added")
        return str(lines[-1].get("Hash"))

    async def cat(self, cid: Cid, *, max_bytes: int) -> bytes:
        return await self._bytes("cat", {"arg": cid.text}, limit=max_bytes)

    async def dag_put(self, data: bytes) -> str:
        """Canonical DAG-CBOR; returns its CID."""
        found = await self._call("dag/put", {"store-codec": "dag-cbor", "input-codec": "dag-cbor", "pin": "false"}, data)
        return str(_mapping(found.get("Cid")).get("/"))

    async def dag_get(self, cid: Cid) -> Any:
        """The value as DAG-JSON."""
        text = await self._bytes("dag/get", {"arg": cid.text, "output-codec": "dag-json"}, limit=_MAX_ANSWER)
        return _json(text)

    # Names

    async def key_list(self) -> Mapping[str, str]:
        """The daemon's keys: label -> name."""
        keys = (await self._call("key/list", {"ipns-base": "base36"})).get("Keys")
        if not isinstance(keys, list):
            raise StoreUnavailable("the Kubo daemon's answer makes no sense")
        return {str(_mapping(key).get("Name")): str(_mapping(key).get("Id")) for key in keys}

    async def key_gen(self, label: str) -> str:
        """Makes a key; returns its name."""
        return str((await self._call("key/gen", {"arg": label, "type": "ed25519", "ipns-base": "base36"})).get("Id"))

    async def name_publish(self, cid: Cid, *, key: str, lifetime: float, ttl: float, timeout: float) -> tuple[str, str]:
        """Points a key's name to content, in seconds; with a daemon that has no peers for itself alone. Returns (name, path)."""
        options = {
            "arg": f"/ipfs/{cid}", "key": key, "lifetime": f"{max(1, round(lifetime))}s", "ttl": f"{max(1, round(ttl))}s", "resolve": "false",
            "allow-offline": "true", "ipns-base": "base36",
        }  # fmt: skip
        found = await self._call("name/publish", options, timeout=timeout)
        return str(found.get("Name")), str(found.get("Value"))

    async def name_resolve(self, name: str, *, timeout: float) -> str:
        """The path that a name points to, as the daemon finds out. Raises `Refused` if it does not."""
        return str((await self._call("name/resolve", {"arg": f"/ipns/{name}", "nocache": "true"}, timeout=timeout)).get("Path"))

    async def swarm_connect(self, address: str) -> None:
        """``address``: a multiaddr with ``/p2p/PEER_ID``."""
        await self._call("swarm/connect", {"arg": address})

    # Pubsub

    async def pubsub_pub(self, topic: str, data: bytes) -> None:
        """Raises `Refused` while the daemon's pubsub is off."""
        await self._bytes("pubsub/pub", {"arg": multibase(topic)}, data=data, limit=_MAX_ANSWER)

    # Parts

    async def _put(self, cid: Cid, data: bytes, old_options: bool) -> str:
        if old_options:
            options = {"format": _CODECS[cid.codec], "mhtype": "sha2-256", "version": "1"}
        else:
            options = {"cid-codec": _CODECS[cid.codec], "mhtype": "sha2-256", "allow-big-block": "true"}
        found = await self._call("block/put", {**options, "pin": "false"}, data)
        try:
            return cids.parse(str(found.get("Key"))).text
        except BadCid:
            return ""

    async def _call(
        self, command: str, options: Mapping[str, str] | None = None, data: bytes | None = None, timeout: float | None = None
    ) -> Mapping[str, Any]:
        return _mapping(_json(await self._bytes(command, options or {}, data=data, limit=_MAX_ANSWER, timeout=timeout)))

    async def _bytes(
        self, command: str, options: Mapping[str, str], *, limit: int, data: bytes | None = None, timeout: float | None = None
    ) -> bytes:
        """One call's whole answer."""
        files = None if data is None else {"file": ("file", data, "application/octet-stream")}
        times = httpx2.Timeout(timeout or self._settings.timeout, connect=self._settings.connect_timeout, pool=None)
        try:
            async with self._client.stream("POST", command, params=dict(options), files=files, timeout=times) as answer:
                body = await _limited(answer, limit)
        except (
            httpx2.HTTPError,
            httpx2.InvalidURL,
            httpx2.StreamError,
            OSError,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
        ) as error:
            raise StoreUnavailable(f"the Kubo daemon does not answer ({type(error).__name__})") from error
        if answer.status_code == 200:
            if answer.headers.get("x-stream-error"):
                raise StoreUnavailable("the Kubo daemon broke off its answer")
            return body
        raise _refusal(answer.status_code, body)


async def _limited(answer: httpx2.Response, limit: int) -> bytes:
    body = bytearray()
    async for piece in answer.aiter_bytes():
        if len(body) > limit:
            continue
        body += piece
        if len(body) > limit:
            await answer.aclose()  # which ends this loop from inside: its iterators do not like to be left
    if len(body) > limit:
        raise StoreUnavailable("the Kubo daemon's answer is too long")
    return bytes(body)


def _refusal(status: int, body: bytes) -> StoreUnavailable:
    if status in (401, 403):
        return StoreUnavailable("the Kubo daemon does not accept the credentials")
    try:
        message = _mapping(_json(body)).get("Message")
    except StoreUnavailable:
        message = None
    if status == 500 and isinstance(message, str):
        return Refused(message[:500])
    return StoreUnavailable(f"the Kubo daemon answers with status {status}")


def _says_missing(error: Refused) -> bool:
    return "not found" in str(error) or "could not find" in str(error)


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise StoreUnavailable("the Kubo daemon's answer makes no sense") from error


def _lines(text: bytes) -> list[Mapping[str, Any]]:
    return [_mapping(_json(line)) for line in text.splitlines() if line.strip()]


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise StoreUnavailable("the Kubo daemon's answer makes no sense")
    return value


def _number(found: Mapping[str, Any], key: str) -> int:
    value = found.get(key)
    if not isinstance(value, int) or value < 0:
        raise StoreUnavailable("the Kubo daemon's answer makes no sense")
    return value


def multibase(text: str) -> str:
    """base64url without padding, after its letter: how Kubo takes topics since 0.11."""
    return "u" + base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode("ascii")


def _flag(value: bool) -> str:
    return "true" if value else "false"


@asynccontextmanager
async def open_rpc(api: str, credentials: str = "", settings: RpcSettings | None = None) -> AsyncGenerator[KuboRpc, None]:
    """``api``, ``credentials``: see `p2p.ipfs.kubo.address`. Nothing is asked yet. Raises `ValueError`."""
    settings = settings or RpcSettings()
    where, header = endpoint(api), authorization(credentials)
    limits = httpx2.Limits(max_connections=settings.connections, max_keepalive_connections=settings.connections)
    transport = httpx2.AsyncHTTPTransport(uds=where.socket, limits=limits, trust_env=False)
    headers = {"authorization": header} if header else {}
    async with httpx2.AsyncClient(base_url=where.base_url, transport=transport, headers=headers, trust_env=False) as client:
        yield KuboRpc(client, settings)
