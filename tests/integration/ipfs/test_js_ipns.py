"""IPNS records against an implementation of others, the npm package ipns: it checks ours, we read its, and both choose the same one."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from p2p.identity import Identity
from p2p.ipfs import cid as cids
from p2p.ipfs import ipns
from tests.support.js_ipfs_node import PLACE, need_js_ipfs

need_js_ipfs()

KEY = Identity(bytes(range(32)))
NAME = ipns.name_of(KEY.peer_id)
CID = cids.compute(cids.DAG_CBOR, b"\xa0").text
SOON = float(int(time.time()) + 3600)
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    command = ["node", str(PLACE / "ipns.mjs")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PLACE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(**request: Any) -> dict[str, Any]:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            return json.loads(stdout.readline())

        try:
            yield ask
        finally:
            process.kill()


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def seed(key: int) -> str:
    return text(bytes([key]) * 32)


@pytest.mark.parametrize("sequence", [0, 1, 1_800_000_000, ipns.MAX_SEQUENCE])
@pytest.mark.parametrize("ttl", [0.0, 30.0, 86_400.5])
def test_it_believes_our_records(ask: Ask, sequence: int, ttl: float) -> None:
    made = ipns.make(KEY, CID, sequence=sequence, expires=SOON + 0.25, ttl=ttl)
    assert ask(check=NAME, record=text(made.raw)) == {
        "value": f"/ipfs/{CID}",
        "sequence": str(sequence),
        "validity": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(SOON)) + ".250000000Z",
        "ttl": str(int(ttl * 1e9)),
    }


def test_it_refuses_what_we_refuse(ask: Ask) -> None:
    sound = ipns.make(KEY, CID, sequence=1, expires=SOON, ttl=30.0).raw
    other = ipns.name_of(Identity(bytes(32)).peer_id)
    expired = ipns.make(KEY, CID, sequence=1, expires=time.time() - 1, ttl=30.0).raw
    assert "value" in ask(check=NAME, record=text(sound))
    forged = sound[:-1] + bytes((sound[-1] ^ 1,))
    for name, raw in ((other, sound), (NAME, expired), (NAME, forged), (NAME, sound[:-1]), (NAME, b"")):
        assert "error" in ask(check=name, record=text(raw))
        with pytest.raises(ipns.BadRecord):
            ipns.read(name, raw, now=time.time())


@pytest.mark.parametrize("v1", [False, True], ids=["version 2 alone", "with fields of version 1"])
@pytest.mark.parametrize("key", [1, 2, 255])
def test_we_believe_its_records(ask: Ask, v1: bool, key: int) -> None:
    made = ask(make=seed(key), value=f"/ipfs/{CID}", sequence="7", lifetime=60_000, ttl="30000000000", v1=v1)
    assert made["name"] == ipns.name_of(Identity(bytes([key]) * 32).peer_id)
    read = ipns.read(made["name"], base64.b64decode(made["record"]), now=time.time())
    assert (read.cid, read.sequence, read.ttl) == (CID, 7, 30.0)
    assert 0 < read.expires - time.time() <= 60
    with pytest.raises(ipns.BadRecord, match="expired"):
        ipns.read(made["name"], read.raw, now=time.time() + 61)
    with pytest.raises(ipns.BadRecord, match="signature"):
        ipns.read(NAME, read.raw)


def test_both_take_the_same_one_for_the_newest(ask: Ask) -> None:
    records = [
        ipns.make(KEY, CID, sequence=sequence, expires=SOON + later, ttl=1.0) for sequence, later in ((1, 900), (3, 0), (3, 100), (2, 500))
    ]
    newest = max(range(4), key=lambda n: (records[n].sequence, records[n].expires))
    assert ask(select=[text(record.raw) for record in records], name=NAME) == {"best": newest}
    assert all(not other.newer_than(records[newest]) for other in records)
