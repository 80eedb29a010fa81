"""`dimnode ipfs` on a running node with a small store: what jobs, models and pins need stays, the rest makes room."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dimnode.domain import codec
from dimnode.errors import DimError, InvalidArgument, NotFound, ResourceExhausted
from tests.support.content_contract import KUBO
from tests.support.real_swarm import MODELS, RealNode, RealSwarm, mlp, one_task, rows, wait_until
from tests.support.unixfs_reference import CHUNK, pattern, reference

BOUND = 8_000_000
GRACE = 0.3
LARGE_ROWS = 1000
"""120 kB: stored as a block."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with RealSwarm(tmp_path_factory.mktemp("s"), {"ipfs.max_bytes": str(BOUND), "ipfs.grace": str(GRACE)}) as swarm:
        node = swarm.start("anna")["anna"]
        with node.node_client() as client:
            client.add_model_file(str(MODELS / "mlp.onnx"), id="mlp")
        yield node


def pin_all(add: Callable[..., bool]) -> None:
    for n in range(8, 16):
        add(n, pin=True)


def file_of(folder: Path, data: bytes, name: str = "file") -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


def test_the_command_line_of_the_store(node: RealNode, tmp_path: Path) -> None:
    size = 4 * CHUNK
    added = node.cli("ipfs", "add", file_of(tmp_path, pattern(size)), "--reason", "a test")
    assert added == {"cid": KUBO[size], "size": size, "pinned": True}
    cid = added["cid"]
    (pin,) = [p for p in node.cli("ipfs", "pins") if p["cid"] == cid]
    assert (pin["kind"], pin["reason"]) == ("recursive", "operator: a test")
    assert node.cli("ipfs", "get", cid, "--out", str(tmp_path / "got"))["size"] == size
    assert (tmp_path / "got").read_bytes() == pattern(size)
    archive = tmp_path / "a.car"
    assert node.cli("ipfs", "export", cid, "--out", str(archive))["size"] == archive.stat().st_size > size
    with node.node_client() as client:
        assert client.unpin_content(cid)["reason"] == "operator: a test"
        wait_until(lambda: client.collect_garbage()["blocks"] == 5, "the file's blocks are old enough to go")
        with pytest.raises(NotFound):
            client.get_content(cid, str(tmp_path / "no"))
        assert not (tmp_path / "no").exists()
        with pytest.raises(NotFound):
            client.unpin_content(cid)
    content = sum(map(len, reference(pattern(size))[1].values()))
    assert node.cli("ipfs", "import", str(archive)) == {"roots": [cid], "blocks": 5, "bytes": content, "pinned": True}
    assert node.cli("ipfs", "gc")["blocks"] == 0
    broken = bytearray(archive.read_bytes())
    broken[-1] ^= 1
    refused = node.cli("ipfs", "import", file_of(tmp_path, bytes(broken), "b.car"), code=1)
    assert refused["error"]["code"] == "INVALID_ARGUMENT"
    assert node.cli("ipfs", "get", "nonsense", code=1)["error"]["code"] == "INVALID_ARGUMENT"
    stat = node.cli("ipfs", "stat")
    assert (stat["backend"], stat["ok"], stat["max_bytes"]) == ("embedded", True, BOUND)
    assert not node.crashed()


def test_what_jobs_and_models_need_outlives_any_collection(node: RealNode, tmp_path: Path) -> None:
    x = rows(LARGE_ROWS)
    with node.node_client() as client, node.client() as jobs:
        (model,) = [m for m in client.models() if m["id"] == "mlp"]
        job = jobs.submit(one_task(), {"x": x})["job_id"]
        jobs.wait(job)
        for cid in (model["cid"], model["manifest_cid"]):
            client.unpin_content(cid)  # a slip of the operator's
        passing = client.add_content(file_of(tmp_path, b"garbage"), pin=False)["cid"]
        wait_until(lambda: client.collect_garbage()["blocks"] >= 1, "what nobody needs goes")
        with pytest.raises(NotFound):
            client.get_content(passing, str(tmp_path / "no"))
        assert client.get_content(model["cid"], str(tmp_path / "model"))["size"] == model["size"]
        np.testing.assert_allclose(jobs.wait(job)["outputs"]["probabilities"], mlp(x), rtol=1e-6)
    node.kill()
    node.start()
    with node.node_client() as client, node.client() as jobs:
        client.collect_garbage()
        np.testing.assert_allclose(jobs.wait(job)["outputs"]["probabilities"], mlp(x), rtol=1e-6)
        np.testing.assert_allclose(jobs.wait(jobs.submit(one_task(), {"x": x})["job_id"])["outputs"]["probabilities"], mlp(x), rtol=1e-6)
    assert not node.crashed()


def test_forms_results_and_receipts_are_loaded_by_cid(node: RealNode, tmp_path: Path) -> None:
    def loaded(cid: str) -> dict[str, Any]:
        path = tmp_path / cid
        with node.node_client() as client:
            wait_until(lambda: client.get_content(cid, str(path)), "the block is made")
        assert node.cli("ipfs", "get", cid, "--out", str(path))["format"] == "dag-json"
        return json.loads(path.read_text())

    with node.client() as jobs:
        x = rows(2)
        job = jobs.submit(one_task(), {"x": x})["job_id"]
        result = jobs.wait(job)
        spec_cid = jobs.get(job)["spec_cid"]
    assert loaded(spec_cid)["pattern"] == one_task()["pattern"]
    shown = loaded(result["result_cid"])
    assert (shown["job_id"], list(shown["outputs"])) == (job, ["probabilities"])
    (task,) = result["tasks"]
    assert shown["tasks"][0]["receipt_cid"] == task["receipt_cid"]
    receipt = loaded(task["receipt_cid"])
    signed = codec.decode_plain(task["receipt"])
    assert receipt["author"] == signed["author"]
    assert receipt["payload"]["/"]["bytes"] == base64.b64encode(signed["payload"]).decode().rstrip("=")
    with node.node_client() as client:
        wait_until(lambda: client.status()["publishing"] == {"backlog": 0, "failures": 0, "problem": ""}, "nothing is left to do")


def test_a_full_store_makes_room_from_garbage_and_refuses_when_there_is_none(node: RealNode, tmp_path: Path) -> None:
    with node.node_client() as client, node.client() as jobs:
        for n in range(8):  # twice as much as fits

            def add(n: int = n, pin: bool = False) -> bool:
                client.add_content(file_of(tmp_path, random.Random(n).randbytes(2_000_000)), pin=pin)
                return True

            wait_until(add, "room is made")
        assert client.store_statistics()["bytes"] <= BOUND
        with pytest.raises(ResourceExhausted):
            pin_all(add)
        with pytest.raises(ResourceExhausted):
            jobs.submit(one_task(), {"x": rows(20_000)})
        x = rows(3)
        job = jobs.submit(one_task(), {"x": x})["job_id"]
        np.testing.assert_allclose(jobs.wait(job)["outputs"]["probabilities"], mlp(x), rtol=1e-6)
        for pin in client.pins()["pins"]:
            if pin["reason"] == "operator":
                client.unpin_content(pin["cid"])
        big = rows(20_000)
        large = wait_until(lambda: jobs.submit(one_task(), {"x": big})["job_id"], "there is room again", within=90)
        np.testing.assert_allclose(jobs.wait(large)["outputs"]["probabilities"], mlp(big), rtol=1e-6)
    assert not node.crashed()


def test_files_that_the_node_cannot_open(node: RealNode, tmp_path: Path) -> None:
    cid = node.cli("ipfs", "add", file_of(tmp_path, b"x"))["cid"]
    with node.node_client() as client:
        for call in (
            lambda: client.add_content(str(tmp_path / "missing")),
            lambda: client.add_content(str(tmp_path)),
            lambda: client.add_content("relative"),
            lambda: client.get_content(cid, str(tmp_path / "no" / "such" / "folder")),
            lambda: client.export_archive([], str(tmp_path / "x.car")),
            lambda: client.import_archive(str(tmp_path / "missing")),
        ):
            with pytest.raises(InvalidArgument) as caught:
                call()
            assert str(tmp_path) not in str(caught.value), "no paths in what clients are told"
        with pytest.raises(DimError):
            client.pin_content("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku")
    assert not node.crashed()


def test_a_provider_that_never_answers_is_given_up_and_work_goes_on(tmp_path: Path) -> None:
    with RealSwarm(tmp_path / "s", {"ipfs.fetch_timeout": "3"}) as swarm:
        swarm.start("anna", "bert")
        anna, bert = swarm["anna"], swarm["bert"]
        with bert.node_client() as client:
            cid = client.add_content(file_of(tmp_path, pattern(CHUNK + 1)), pin=True)["cid"]
        with anna.node_client() as client, anna.client() as jobs:
            client.add_model_file(str(MODELS / "mlp.onnx"), id="mlp")
            bert.pause()
            try:
                with pytest.raises(DimError) as caught:
                    client.get_content(cid, str(tmp_path / "no"))
                assert cid in str(caught.value)
                assert not (tmp_path / "no").exists()
                x = rows(LARGE_ROWS)
                done = jobs.wait(jobs.submit(one_task(), {"x": x})["job_id"])
                np.testing.assert_allclose(done["outputs"]["probabilities"], mlp(x), rtol=1e-6)
            finally:
                bert.resume()

            def get() -> bool:
                try:
                    return client.get_content(cid, str(tmp_path / "got"))["size"] == CHUNK + 1
                except DimError:
                    return False

            wait_until(get, "it answers again", within=60)
            assert (tmp_path / "got").read_bytes() == pattern(CHUNK + 1)
        assert not anna.crashed()
        assert not bert.crashed()
