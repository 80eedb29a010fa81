"""The Python client and the node's socket, against real servers in the same process."""

from __future__ import annotations

import stat
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from dimnode.client import Client, Settings, TransferSettings, tensor_from_numpy
from dimnode.domain import tensors
from dimnode.domain.tensors import TensorValue
from dimnode.errors import FailedPrecondition, InvalidArgument, NotFound, NotReady, Unavailable
from dimnode.rpc.bridge import Bridge, open_bridge
from dimnode.rpc.clients import ClientSettings, ClientTls, NodeClient
from dimnode.rpc.node_server import serve_node
from dimnode.rpc.orchestrator_server import OrchestratorServerSettings, serve_orchestrator
from dimnode.rpc.server import ServerSettings
from tests.support.rpc_fakes import FakeApi, FakeSwarm

FORM = {"pattern": "collaborative", "config": {"model_id": "m"}}
QUICK = Settings(ClientSettings(retry_for=3.0), TransferSettings(inline_bytes=1000, inline_total=1500, chunk=300))
SERVER = OrchestratorServerSettings(server=ServerSettings(grace=0.2))


@asynccontextmanager
async def running(api: FakeApi, swarm: FakeSwarm) -> AsyncGenerator[tuple[Bridge, str]]:
    async with open_bridge() as bridge, serve_orchestrator(bridge, api, swarm, "127.0.0.1:0", SERVER) as server:
        yield bridge, server.address


async def in_thread(fn: Callable[[], Any]) -> Any:
    with trio.fail_after(30):
        return await trio.to_thread.run_sync(fn)


async def test_a_job_from_submission_to_arrays() -> None:
    api, swarm = FakeApi(), FakeSwarm()
    big = np.arange(1000.0)
    async with running(api, swarm) as (_, address):

        def use() -> None:
            with Client(address, QUICK) as dim:
                job = dim.submit(FORM, {"small": [1, 2], "big": big, "words": np.array(["ä"])})
                assert job == {"job_id": "job-1", "copies": 1}
                cid = dim.put_artifact(tensors.to_npy(big))["cid"]
                api.documents["j"] = {
                    "job_id": "j",
                    "status": "completed",
                    "outputs": {"y": tensor_from_numpy([1.5]), "z": TensorValue(dtype="float64", shape=(1000,), cid=cid)},
                }
                assert dim.get("j")["status"] == "completed"
                assert [d["epoch"] for d in dim.watch("j")] == [0, 1, 2]
                outputs = dim.wait("j")["outputs"]
                np.testing.assert_array_equal(outputs["y"], [1.5])
                np.testing.assert_array_equal(outputs["z"], big)
                assert dim.result("j", fetch=False)["outputs"]["z"].cid == cid
                assert dim.cancel("j")["status"] == "cancelled"
                assert dim.dry_run(FORM)["placement"] == {"m/a": {"node": "n"}}
                assert [j["job_id"] for j in dim.list()] == ["job-0", "job-1"]
                assert dim.list(active=True)[0]["status"] == "running"
                assert dim.nodes()[0]["capabilities"] == {"cpus": 4}
                assert dim.cluster()["orchestrators"][0]["local_only"] is True
                assert dim.models()[0]["inputs"][0]["shape"] == ["N", 4, None]
                assert dim.add_model("c", id="m", batch_axis=0)["id"] == "m"
                assert dim.put_artifact(iter([b"ab", b"c"]))["size"] == 3
                many = dim.submit_many([FORM, FORM])
                assert [j["job_id"] for j in many] == ["job-2", "job-3"]

        await in_thread(use)
    form = api.forms[0][0]
    assert form.form.idempotency_key
    assert tensors.to_numpy(form.client_data["small"]).tolist() == [1, 2]
    assert form.client_data["words"].dtype == "str"
    stored = form.client_data["big"]
    assert (stored.dtype, stored.shape) == ("float64", (1000,))
    np.testing.assert_array_equal(tensors.from_npy(swarm.blobs[stored.cid]), big)


async def test_many_small_inputs_are_stored_until_the_rest_fits() -> None:
    api, swarm = FakeApi(), FakeSwarm()
    async with running(api, swarm) as (_, address):

        def use() -> None:
            with Client(address, QUICK) as dim:
                dim.submit(FORM, {f"x{i}": np.zeros(100 + i, np.uint8) for i in range(20)})

        await in_thread(use)
    inline = [v.nbytes for v in api.forms[0][0].client_data.values() if v.raw is not None]
    assert sum(inline) <= 1500
    assert len(inline) > 10


async def test_errors_come_back_as_themselves() -> None:
    async with running(FakeApi(), FakeSwarm()) as (_, address):

        def use() -> None:
            with Client(address, QUICK) as dim:
                with pytest.raises(NotFound, match="no job"):
                    dim.get("none")
                with pytest.raises(NotReady):
                    dim.result("none")
                with pytest.raises(InvalidArgument, match="pattern"):
                    dim.submit({"pattern": "magic"})
                with pytest.raises(NotFound):
                    list(dim.get_artifact("nothing"))
                with pytest.raises(InvalidArgument):
                    dim.submit(FORM, {"x": np.array(["2020"], dtype="datetime64[D]")})

        await in_thread(use)


async def test_the_next_address_takes_over() -> None:
    api = FakeApi()
    api.documents["j"] = {"job_id": "j"}
    async with running(api, FakeSwarm()) as (_, address):

        def use() -> None:
            with Client(["127.0.0.1:1", address], QUICK) as dim:
                assert dim.submit(FORM)["job_id"] == "job-1"
            with Client(["127.0.0.1:1", address], QUICK) as dim:
                assert len(list(dim.watch("j"))) == 3

        await in_thread(use)


async def test_a_watch_goes_on_when_the_orchestrator_comes_back() -> None:
    api = FakeApi()
    seen: list[dict[str, Any]] = []
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        async with serve_orchestrator(bridge, api, FakeSwarm(), "127.0.0.1:0", SERVER) as server:
            address = server.address

            def watch() -> None:
                with Client(address, Settings(ClientSettings(retry_for=20.0))) as dim:
                    seen.extend(dim.watch("endless"))

            nursery.start_soon(in_thread, watch)
            await api.entered.wait()
        later = FakeApi()
        later.documents["endless"] = {"job_id": "endless", "status": "running"}
        later.watch = lambda _: FakeApi.watch(later, "endless-no-more")  # type: ignore[method-assign]
        async with serve_orchestrator(bridge, later, FakeSwarm(), address, SERVER):
            with trio.fail_after(20):
                while len(seen) < 4:
                    await trio.sleep(0.05)
    assert [d["status"] for d in seen] == ["running", "running", "running", "completed"]


async def test_nobody_there_is_unavailable_in_plain_words() -> None:
    def use() -> None:
        with Client("127.0.0.1:1", Settings(ClientSettings(retry_for=0.2))) as dim:
            with pytest.raises(Unavailable, match="nobody answers"):
                dim.nodes()
            with pytest.raises(Unavailable, match="nobody answers"):
                dim.put_artifact(iter([b"x"]))
        with pytest.raises(Unavailable):
            Client([])

    await in_thread(use)


async def test_events_come_over_the_nodes_socket_until_the_caller_leaves(tmp_path: Path) -> None:
    swarm = FakeSwarm()
    async with open_bridge() as bridge, serve_node(bridge, swarm, tmp_path / "node.sock") as server:

        def use() -> None:
            with NodeClient(server.address) as node:
                assert [e["job"] for e in node.events()] == ["job-0", "job-1"]
                follow = node.events(["nodes"], follow=True)
                assert [next(follow) for _ in range(3)][2] == {"kind": "nodes", "event": "accepted", "job": "job-2", "at": 1.5, "epoch": 2}
                follow.close()

        await in_thread(use)
        with trio.fail_after(5):
            await swarm.events_left.wait()


async def test_a_follower_of_events_hears_that_the_node_stops(tmp_path: Path) -> None:
    async with open_bridge() as bridge:
        begun = trio.Event()

        def use() -> None:
            with NodeClient(server.address) as node:
                for event in node.events(follow=True):
                    if event["job"] == "job-2":
                        trio.from_thread.run_sync(begun.set)

        async with trio.open_nursery() as nursery, serve_node(bridge, FakeSwarm(), tmp_path / "node.sock") as server:

            async def fails() -> None:
                with pytest.raises(Unavailable):
                    await in_thread(use)

            nursery.start_soon(fails)
            await begun.wait()


async def test_the_nodes_socket_serves_its_operator_only(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    path = folder / "node.sock"
    async with open_bridge() as bridge:
        async with serve_node(bridge, FakeSwarm(), path) as server:
            assert server.address == f"unix:{path}"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700

            def use() -> None:
                with NodeClient(server.address) as node:
                    assert node.status() == {"name": "n", "term": 3, "gateway": None}
                    assert node.invite() == "dim:invite"
                    assert node.nodes()[0]["cabinets"][0]["columns"] == {"x": "float32"}
                    assert node.stats("other") == {"node": "other", "queue": {"length": 0}}
                    assert node.add_model_file("/m.onnx", id="m", batch_axis=0)["cid"] == "/m.onnx"
                    assert node.models()[0]["id"] == "m"
                    assert node.describe_model("m") == {"id": "m", "golden": None}
                    assert node.check_model("m") == {"id": "m", "golden": True}
                    assert node.remove_model("m") == {"removed": [{"id": "m", "cid": "c"}]}
                    with pytest.raises(InvalidArgument, match="name"):
                        node.remove_model("")
                    assert node.add_cabinet("c", "/c.csv")["format"] == "csv"
                    assert node.cabinets()[0]["rows"] == 3
                    with pytest.raises(InvalidArgument, match="absolute"):
                        node.add_model_file("m.onnx")
                    with pytest.raises(InvalidArgument, match="name"):
                        node.add_cabinet("", "/c.csv")

            await in_thread(use)
            with pytest.raises(FailedPrecondition, match="is running"):
                async with serve_node(bridge, FakeSwarm(), path):
                    pytest.fail("two nodes on one socket")
            await in_thread(use)  # the first one still answers
        assert not path.exists()
        path.touch()  # what a killed node leaves
        async with serve_node(bridge, FakeSwarm(), path):
            pass
        with pytest.raises(FailedPrecondition, match="longer"):
            async with serve_node(bridge, FakeSwarm(), tmp_path / ("x" * 100) / "s"):
                pytest.fail("too long")


def test_a_tls_client_is_made_from_pem() -> None:
    settings = Settings(ClientSettings(retry_for=0.0, tls=ClientTls(server_name="dim.example")))
    with Client("127.0.0.1:1", settings) as dim, pytest.raises(Unavailable):
        dim.nodes()
