"""Models become the swarm's, are checked and go, in a daemon with real agents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from dimnode.domain import codec
from dimnode.domain.tensors import from_numpy, to_json, to_numpy
from dimnode.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from p2p.ipfs.memory import MemoryExchange
from tests.support.daemon import finish, order, running_daemon
from tests.support.mlx_functions import mlx_function
from tests.support.models import WEIGHTS, external_onnx, linear_onnx

X = np.arange(12, dtype=np.float32).reshape(3, 4)
MLX = {"inputs": [{"name": "x", "dtype": "float32", "shape": [3, 4]}], "outputs": [{"name": "y", "dtype": "float32", "shape": [3, 2]}, {"name": "class", "dtype": "int64", "shape": [3]}]}  # fmt: skip


async def add(bench: Any, path: Path, id: str = "m", sign: bool = False, **form: Any) -> Any:
    return await bench.daemon.add_model_file(path, id=id, licence="MIT", batch_axis=None, form=json.dumps(form), sign=sign)


def golden(y: Any) -> dict[str, Any]:
    return {"inputs": {"x": to_json(from_numpy(X))}, "outputs": {"y": to_json(from_numpy(y))}}


async def test_a_golden_pair_that_is_not_met_publishes_nothing(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        path = linear_onnx(tmp_path / "m.onnx")
        before = len(bench.daemon.models())
        pins = await bench.store.pins()
        with pytest.raises(FailedPrecondition, match="does not give its golden answer"):
            await add(bench, path, golden=golden(X @ WEIGHTS + 1))
        with pytest.raises(FailedPrecondition, match="golden inputs do not fit"):
            await add(bench, path, golden={"inputs": {}})
        with pytest.raises(InvalidArgument, match="colour"):
            await add(bench, path, colour="red")
        assert len(bench.daemon.models()) == before
        assert await bench.store.pins() == pins
        manifest, _ = await add(bench, path, golden=golden(X @ WEIGHTS))
        assert manifest.golden is not None


async def test_a_golden_pair_is_checked_where_the_model_is_loaded(tmp_path: Path) -> None:
    """A node whose library computes something else does not take the model."""
    exchange = MemoryExchange()
    async with (
        running_daemon(tmp_path / "a", name="a", exchange=exchange) as a,
        running_daemon(tmp_path / "b", name="b", exchange=exchange) as b,
    ):
        manifest, _ = await add(a, linear_onnx(tmp_path / "m.onnx"), golden=golden(X @ WEIGHTS))
        assert manifest.golden is not None
        lie = msgspec.structs.replace(manifest.golden, outputs={"y": from_numpy(X @ WEIGHTS * 2)})
        false = msgspec.structs.replace(manifest, golden=lie)
        cid = await a.store.put_dag_bytes(codec.encode(false))
        done = await finish(b.daemon, order(manifest, cid, {"x": X}, providers=("a",)))
        assert done.error is not None
        assert "golden answer" in done.error.message


async def test_a_mlx_function_by_its_form(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        path = mlx_function(tmp_path / "f.mlxfn")
        with pytest.raises(FailedPrecondition, match="manifest must name them"):
            await add(bench, path)
        manifest, manifest_cid = await add(bench, path, **MLX)
        done = await finish(bench.daemon, order(manifest, manifest_cid, {"x": X}))
        assert done.status == "completed"
        np.testing.assert_allclose(to_numpy(done.outputs["y"]), X @ WEIGHTS)
        assert (await bench.daemon.check_model(manifest, manifest_cid, ()))["schema"] is True


async def test_a_folder_is_one_artifact(tmp_path: Path) -> None:
    exchange = MemoryExchange()
    async with (
        running_daemon(tmp_path / "a", name="a", exchange=exchange) as a,
        running_daemon(tmp_path / "b", name="b", exchange=exchange) as b,
    ):
        (tmp_path / "net").mkdir()
        external_onnx(tmp_path / "net" / "net.onnx")
        manifest, manifest_cid = await add(a, tmp_path / "net")
        again, _ = await add(b, tmp_path / "net", id="other")
        assert again.cid == manifest.cid
        done = await finish(b.daemon, order(manifest, manifest_cid, {"x": X}, providers=("a",)))
        assert done.status == "completed"
        assert list((tmp_path / "a" / "packing").iterdir()) == []
        (tmp_path / "net" / "link").symlink_to("/etc/passwd")
        with pytest.raises(InvalidArgument, match="link"):
            await add(a, tmp_path / "net", id="third")


async def test_signed_manifests_are_believed_only_from_their_author(tmp_path: Path) -> None:
    exchange = MemoryExchange()
    async with (
        running_daemon(tmp_path / "a", name="a", exchange=exchange) as a,
        running_daemon(tmp_path / "b", name="b", exchange=exchange) as b,
    ):
        manifest, manifest_cid = await add(a, linear_onnx(tmp_path / "m.onnx"), sign=True)
        assert manifest.author == "a"
        assert (await finish(b.daemon, order(manifest, manifest_cid, {"x": X}, providers=("a",)))).status == "completed"
        forged = await a.store.put_dag_bytes(codec.encode(msgspec.structs.replace(manifest, licence="stolen")))
        done = await finish(b.daemon, order(manifest, forged, {"x": X}, providers=("a",), task="u"))
        assert done.error is not None
        assert done.error.code == DataLoss.code
        unsigned, _ = await add(a, tmp_path / "m.onnx", id="m2")
        assert (unsigned.author, unsigned.signature) == ("", b"")


async def test_equal_models_have_equal_manifests_on_every_node(tmp_path: Path) -> None:
    path = linear_onnx(tmp_path / "m.onnx")
    found = []
    for name in ("a", "b"):
        async with running_daemon(tmp_path / name, name=name) as bench:
            found.append((await add(bench, path, golden=golden(X @ WEIGHTS)))[1])
    assert found[0] == found[1]


async def test_a_removed_model_is_unpinned_and_gone(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        path = linear_onnx(tmp_path / "m.onnx")
        manifest, manifest_cid = await add(bench, path)
        other, _ = await add(bench, path, id="other")
        assert (await finish(bench.daemon, order(manifest, manifest_cid, {"x": X}))).status == "completed"
        assert [r.id for r in await bench.daemon.remove_model("m")] == ["m"]
        assert [r.id for r in bench.daemon.models() if r.cid == manifest.cid] == ["other"]
        assert manifest.cid in await bench.store.pins()
        await bench.daemon.remove_model(other.cid)
        assert not [r for r in bench.daemon.models() if r.cid == manifest.cid]
        assert manifest.cid not in await bench.store.pins()
        with pytest.raises(NotFound):
            await bench.daemon.remove_model("m")
        with pytest.raises(FailedPrecondition, match="built-in"):
            await bench.daemon.remove_model("dim/boxes@1")
    async with running_daemon(tmp_path / "home") as again:
        assert not [r for r in again.daemon.models() if r.cid == manifest.cid]


async def test_a_check_tells_what_it_saw(tmp_path: Path) -> None:
    async with running_daemon(tmp_path / "home") as bench:
        manifest, manifest_cid = await add(bench, linear_onnx(tmp_path / "m.onnx"), golden=golden(X @ WEIGHTS))
        told = await bench.daemon.check_model(manifest, manifest_cid, ())
        assert (told["golden"], told["schema"]) == (True, True)
        assert told["memory"] > 10 << 20
