from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dimnode.daemon import cabinet_files, cabinet_policy
from dimnode.daemon.cabinets import Cabinets
from dimnode.domain.model import ModelManifest, TensorSpec
from dimnode.domain.task import CabinetQuery
from dimnode.errors import InvalidArgument, NotFound, PermissionDenied

CSV = "a,b,name,flag,gap\n1,2.5,x,true,1\n2,3.5,,false,\n"


def manifest(*inputs: tuple[str, str, tuple]) -> ModelManifest:
    specs = tuple(TensorSpec(name=n, dtype=d, shape=s) for n, d, s in inputs)
    return ModelManifest(id="m", cid="c", format="onnx", inputs=specs, outputs=(), size=1)


async def opened(tmp_path: Path, cache_bytes: int = 1 << 20) -> Cabinets:
    cabinets = Cabinets(tmp_path, cache_bytes=cache_bytes)
    await cabinets.open()
    return cabinets


async def csv_cabinet(tmp_path: Path, text: str = CSV) -> Cabinets:
    (tmp_path / "d.csv").write_text(text)
    cabinets = await opened(tmp_path)
    await cabinets.add("c", tmp_path / "d.csv", None)
    return cabinets


async def test_csv_types_and_persistence(tmp_path: Path) -> None:
    cabinets = await csv_cabinet(tmp_path)
    info = cabinets.infos()[0]
    assert info.rows == 2
    assert info.columns == {"a": "int64", "b": "float64", "name": "str", "flag": "bool", "gap": "float64"}
    again = await opened(tmp_path)
    assert again.infos() == (info,)
    assert (tmp_path / "cabinets.json").stat().st_mode & 0o777 == 0o600


async def test_others_are_told_that_a_policy_demands_a_complete_sandbox(tmp_path: Path) -> None:
    cabinets = await csv_cabinet(tmp_path)
    await cabinets.add("strict", tmp_path / "d.csv", {"sandbox": True})
    assert {c.name: c.sandbox for c in (await opened(tmp_path)).infos()} == {"c": False, "strict": True}


async def test_the_same_data_has_the_same_commitment_in_each_format(tmp_path: Path) -> None:
    content = {"a": np.array([1, 2]), "b": np.array([0.5, 1.5]), "t": np.array(["x", "ä"], dtype=object)}
    np.savez(tmp_path / "d.npz", a=content["a"], b=content["b"], t=content["t"].astype(str))
    parquet.write_table(pa.table({"a": [1, 2], "b": [0.5, 1.5], "t": ["x", "ä"]}), tmp_path / "d.parquet")
    (tmp_path / "d.csv").write_text("a,b,t\n1,0.5,x\n2,1.5,ä\n")
    wanted = cabinet_files.commitment(content)
    for name in ("d.npz", "d.parquet", "d.csv"):
        path = tmp_path / name
        assert cabinet_files.commitment(cabinet_files.read(path, cabinet_files.recognise(path))) == wanted
    content["b"][1] = 1.25
    assert cabinet_files.commitment(content) != wanted


async def test_columns_become_inputs(tmp_path: Path) -> None:
    cabinets = await csv_cabinet(tmp_path)
    query = CabinetQuery(name="c")
    named = await cabinets.read("c", manifest(("b", "float32", ("N",)), ("name", "str", ("N",))), query)
    assert named.inputs["b"].dtype == np.float32
    assert named.inputs["name"].tolist() == ["x", ""]
    assert named.rows == 2
    stacked = await cabinets.read("c", manifest(("x", "float32", ("N", 4))), query)
    assert stacked.inputs["x"].shape == (2, 4)
    chosen = await cabinets.read("c", manifest(("x", "float32", ("N", 2))), CabinetQuery(name="c", columns=("b", "a")))
    assert chosen.inputs["x"].tolist() == [[2.5, 1], [3.5, 2]]
    both = manifest(("x", "float64", ("N", 1)), ("y", "int64", ("N",)))
    by_input = await cabinets.read("c", both, CabinetQuery(name="c", columns_by_input={"x": ("b",), "y": ("a",)}))
    assert by_input.inputs["y"].tolist() == [1, 2]
    rest = manifest(("a", "int64", ("N",)), ("x", "float64", ("N", 3)))
    assert (await cabinets.read("c", rest, query)).inputs["x"][0].tolist() == [2.5, 1.0, 1.0]
    given = manifest(("w", "float64", (4,)), ("x", "float32", ("N", 4)))
    assert set((await cabinets.read("c", given, query, given=("w",))).inputs) == {"x"}


@pytest.mark.parametrize(
    ("inputs", "query"),
    [
        ([("x", "float32", ("N", 9))], {}),
        ([("x", "float32", ("N", 2)), ("y", "float32", ("N", 2))], {}),
        ([("x", "float32", ("N", 2))], {"columns": ("a", "nope")}),
        ([("x", "float32", ("N", 2))], {"columns": ()}),
        ([("x", "float32", ("N", 2))], {"columns": ("a", "name")}),
        ([("x", "float32", ("N",))], {"columns": ("a", "b")}),
        ([("x", "float32", ("N", 2)), ("y", "float32", ("N",))], {"columns": ("a",)}),
        ([("x", "float32", ("N", 1))], {"columns_by_input": {"z": ("a",)}}),
        ([("x", "float32", ("N", 1)), ("y", "int64", ("N",))], {"columns_by_input": {"x": ("a",)}}),
        ([("b", "int64", ("N",))], {}),
    ],
)
async def test_what_does_not_fit_is_refused(tmp_path: Path, inputs, query) -> None:
    cabinets = await csv_cabinet(tmp_path)
    with pytest.raises(InvalidArgument):
        await cabinets.read("c", manifest(*inputs), CabinetQuery(name="c", **query))


async def test_lone_array_feeds_lone_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((3, 2, 2), np.float32))
    cabinets = await opened(tmp_path)
    info = await cabinets.add("i", tmp_path / "d.npz", None)
    assert info.columns == {"images": "float32[2,2]"}
    assert (await cabinets.read("i", manifest(("x", "float32", ("N", 2, 2))), CabinetQuery(name="i"))).inputs["x"].shape == (3, 2, 2)


async def test_changed_files_are_committed_to_anew_and_gone_ones_told(tmp_path: Path) -> None:
    cabinets = await csv_cabinet(tmp_path, "x\n1\n")
    m, query = manifest(("x", "int64", ("N",))), CabinetQuery(name="c")
    first = await cabinets.read("c", m, query)
    assert (await cabinets.read("c", m, query)).commitment == first.commitment
    (tmp_path / "d.csv").write_text("x\n1\n2\n")
    os.utime(tmp_path / "d.csv", ns=(1, 1))
    second = await cabinets.read("c", m, query)
    assert (second.rows, second.commitment != first.commitment) == (2, True)
    assert cabinets.infos()[0].rows == 2
    fresh = await opened(tmp_path, cache_bytes=1)
    assert (await fresh.read("c", m, query)).commitment == second.commitment
    (tmp_path / "d.csv").unlink()
    with pytest.raises(NotFound):
        await cabinets.read("c", m, query)
    with pytest.raises(NotFound):
        await cabinets.read("other", m, query)


@pytest.mark.parametrize("name", ["", "../x", "client_data", "step_1_output", "a b", "x" * 200])
async def test_bad_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "d.csv").write_text("a\n1\n")
    with pytest.raises(InvalidArgument):
        await (await opened(tmp_path)).add(name, tmp_path / "d.csv", None)


async def test_bad_files(tmp_path: Path) -> None:
    cabinets = await opened(tmp_path)
    with pytest.raises(NotFound):
        await cabinets.add("c", tmp_path / "none.csv", None)
    for name, data in (("a.txt", b"x"), ("b.parquet", b"junk"), ("c.npz", b"PK\x03\x04"), ("d.csv", b""), ("e.csv", b"a,a\n1,2\n")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidArgument):
            await cabinets.add("c", tmp_path / name, None)
    np.savez(tmp_path / "f.npz", a=np.zeros(2), b=np.zeros(3))
    np.savez(tmp_path / "g.npz", a=np.float32(1))
    np.savez(tmp_path / "h.npz", a=np.array([{}], dtype=object))
    np.savez(tmp_path / "i.npz", a=np.array(["2020-01-01"], dtype="M8[D]"))
    for name in ("f.npz", "g.npz", "h.npz", "i.npz"):
        with pytest.raises(InvalidArgument):
            await cabinets.add("c", tmp_path / name, None)


def test_policies_are_checked_field_by_field() -> None:
    with pytest.raises(InvalidArgument) as refused:
        cabinet_policy.parse({"models": [], "clients": "me", "outputs": "all", "min_rows": 0, "expires": "soon", "extra": 1})
    assert {f.field for f in refused.value.fields} == {
        f"policy.{n}" for n in ("models", "clients", "outputs", "min_rows", "expires", "extra")
    }
    assert cabinet_policy.parse(None) == cabinet_policy.OPEN
    assert cabinet_policy.parse({"outputs": "aggregates"}).min_rows == 10
    assert cabinet_policy.parse({"expires": "2030-01-01"}).expires == cabinet_policy.parse({"expires": "2030-01-01T01:00:00+01:00"}).expires
    assert cabinet_policy.parse({"expires": 5}).expires == 5


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ({"expires": 99}, "expired"),
        ({"clients": ["you"]}, "client"),
        ({"models": ["other"]}, "model"),
        ({"outputs": "aggregates"}, "aggregates"),
    ],
)
def test_access_is_denied_with_the_reason(policy: dict, why: str) -> None:
    asked = {"cabinet": "c", "model_cid": "cid", "model_id": "m", "principal": "me", "reduce": "rows", "now": 100.0}
    with pytest.raises(PermissionDenied, match=why):
        cabinet_policy.enforce_access(cabinet_policy.parse(policy), **asked)
    cabinet_policy.enforce_access(cabinet_policy.parse({"models": ["cid"], "clients": ["me"], "expires": 101}), **asked)


def test_small_aggregates_and_unreduced_outputs_are_denied() -> None:
    policy = cabinet_policy.parse({"outputs": "aggregates", "min_rows": 3})
    asked = {"cabinet": "c", "outputs": ["y", "w"], "batched_outputs": ["y"], "reduce": "mean"}
    with pytest.raises(PermissionDenied, match="3 rows"):
        cabinet_policy.enforce_content(policy, rows=2, **asked)
    with pytest.raises(PermissionDenied, match="'w'"):
        cabinet_policy.enforce_content(policy, rows=3, **asked)
    cabinet_policy.enforce_content(policy, rows=3, **{**asked, "reduce": "votes"})
    trusted = cabinet_policy.parse({"outputs": "aggregates", "min_rows": 3, "models": ["m"]})
    cabinet_policy.enforce_content(trusted, rows=3, **asked)


def test_a_policy_can_demand_a_complete_sandbox() -> None:
    asked = {"cabinet": "c", "model_cid": "m", "model_id": "m", "principal": "p", "reduce": "rows", "now": 0.0}
    policy = cabinet_policy.parse({"sandbox": True})
    cabinet_policy.enforce_access(policy, **asked, confined=True)
    with pytest.raises(PermissionDenied, match="complete sandbox"):
        cabinet_policy.enforce_access(policy, **asked, confined=False)
    cabinet_policy.enforce_access(cabinet_policy.parse({"sandbox": False}), **asked, confined=False)
    with pytest.raises(InvalidArgument, match="sandbox must be true or false"):
        cabinet_policy.parse({"sandbox": "yes"})
