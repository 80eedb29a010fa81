"""Hostile models of every framework in real, confined agents: they are ended, refused or fail with a reason, and the node goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import trio
from onnx import TensorProto, helper

from dimnode.daemon import model_about
from dimnode.daemon.agents import AgentPool, ModelFile
from dimnode.domain.model import TensorSpec
from dimnode.errors import DimError, FailedPrecondition
from loaders.protobuf import put_bytes, put_int, put_ints
from loaders.registry import ENTRIES
from tests.integration.daemon.test_agents import X, fast, gone, pids, running_pool
from tests.security.loaders.test_hostile_language import gguf, tensor
from tests.security.loaders.test_hostile_pt2 import CASES, hostile, rebuilt
from tests.support.hostile_models import NAMES, hostile_models
from tests.support.mlx_functions import mlx_function
from tests.support.models import WEIGHTS, linear_pt2, save
from tests.support.torchscript import HOSTILE, torchscripts

FORMATS = tuple(NAMES)
LIMIT = 1 << 30
"""Bytes that an agent may have here; what is hungry wants four times as many."""
pytestmark = pytest.mark.timeout(240)


def about(*outputs: tuple[int | str | None, ...]) -> str:
    named = tuple(TensorSpec(name=f"y{n}", dtype="float32", shape=shape) for n, shape in enumerate(outputs))
    return model_about.encode((TensorSpec(name="x", dtype="float32", shape=(1,)),), named)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    made: dict[str, dict[str, Path]] = {}

    def of(format: str) -> dict[str, Path]:
        if format not in made:
            made[format] = hostile_models(tmp_path_factory.mktemp(format), format)
        return made[format]

    return of


def model(files: Callable[[str], dict[str, Path]], format: str, name: str) -> ModelFile:
    path = files(format)[name]
    # one output of any shape; programs say it themselves
    return ModelFile(name, format, path, path.stat().st_size, about=about((None,) if format != "mlx" or name != "wide" else (None, None)))


async def goes_on(pool: AgentPool, folder: Path) -> None:
    np.testing.assert_allclose((await pool.run(fast(folder), {"x": X}))["y"], X @ WEIGHTS)
    assert pool.statistics()["busy"] == 0


@pytest.mark.parametrize("format", FORMATS)
async def test_what_never_ends_is_ended_at_its_deadline(tmp_path: Path, files: Any, format: str) -> None:
    async with running_pool(tmp_path) as pool:
        never = model(files, format, "endless")
        agent = await pool.acquire(never)  # loaded, not run
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_it_computes, agent.pid, nursery.cancel_scope)
            await pool.run_on(agent, never, {"x": np.ones(1, np.float32)})
        assert nursery.cancel_scope.cancelled_caught
        await gone(agent.pid)
        assert agent.pid not in pids(pool)
        await goes_on(pool, tmp_path)


async def until_it_computes(pid: int, scope: trio.CancelScope) -> None:
    """Ends the call, as a deadline would, once the model has really used the processor."""
    process = psutil.Process(pid)
    before = process.cpu_times().user
    with trio.fail_after(60):
        while process.cpu_times().user < before + 1:
            await trio.sleep(0.05)
    scope.cancel()


REASONS = {
    ("torchscript", "hungry"): "can't allocate memory",
    ("torchscript", "hoarding"): "can't allocate memory",
    ("pt2", "hungry"): "can't allocate memory",
    ("mlx", "hungry"): "crashed|memory",  # MLX does not look whether it got the memory that it asked for
    ("torchscript", "wide"): "can't allocate memory",
    ("pt2", "wide"): "can't allocate memory",
    ("mlx", "wide"): "memory limit",
}
"""``wide``: one number that poses as four tebibytes of them. Nobody may write them out."""


@pytest.mark.parametrize(("format", "name"), REASONS)
async def test_what_wants_all_memory_fails_with_a_reason(tmp_path: Path, files: Any, format: str, name: str) -> None:
    async with running_pool(tmp_path, memory_base=LIMIT) as pool:
        with pytest.raises(DimError, match=REASONS[format, name]) as failed:
            await pool.run(model(files, format, name), {"x": np.ones(1, np.float32)})
        assert str(tmp_path) not in failed.value.message
        await goes_on(pool, tmp_path)


async def test_hostile_torchscript_in_real_agents(tmp_path: Path) -> None:
    found = torchscripts(tmp_path, *HOSTILE)
    async with running_pool(tmp_path) as pool:
        for name, path in found.items():
            with pytest.raises(FailedPrecondition, match="TorchScript file was refused"):
                await pool.inspect(ModelFile(name, "torchscript", path, path.stat().st_size, about=about((None,))))
        await goes_on(pool, tmp_path)
    assert not list(tmp_path.rglob("MARKER"))


async def test_hostile_programs_in_real_agents(tmp_path: Path) -> None:
    marker = tmp_path / "pwned"
    archives = hostile(linear_pt2(tmp_path / "good.pt2").read_bytes(), marker)
    async with running_pool(tmp_path) as pool:
        for name in CASES:
            path = tmp_path / f"{name}.pt2"
            path.write_bytes(archives[name])
            with pytest.raises(FailedPrecondition, match="cannot be loaded"):
                await pool.inspect(ModelFile(name, "pt2", path, path.stat().st_size))
        good = tmp_path / "good.pt2"
        assert (await pool.inspect(ModelFile("good", "pt2", good, good.stat().st_size))).outputs
        await goes_on(pool, tmp_path)
    assert not marker.exists()
    assert not list(tmp_path.rglob("MARKER"))


def tensors(**entries: tuple[int, ...]) -> bytes:
    """A safetensors file whose header claims sizes that the file has not."""
    header: dict[str, Any] = {}
    for name, shape in entries.items():
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 4 * math.prod(shape)]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


def sized_coreml(size: int) -> bytes:
    """A linear model that says it takes so many numbers."""
    array = put_bytes(5, put_ints(1, [size]) + put_int(2, 65568))
    description = put_bytes(1, put_bytes(1, "x") + put_bytes(3, array)) + put_bytes(10, put_bytes(1, "y") + put_bytes(3, put_bytes(2, b"")))
    weights = put_bytes(1, put_bytes(1, bytes(8))) + put_bytes(2, bytes(8))
    return put_int(1, 1) + put_bytes(2, description) + put_bytes(300, weights)


def huge_onnx(folder: Path) -> Path:
    """Its input has 2^62 numbers, its output as many."""
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1 << 31, 1 << 31]) for n in ("x", "y")]
    return save(folder / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], info[:1], info[1:])


def claimed(folder: Path, name: str, size: int) -> Path:
    """The good program with a size of its input, or of a weight, that is out of all reason."""

    def grow(document: Any) -> None:
        values = document["graph_module"]["graph"]["tensor_values"]
        for value in values.values():
            value["sizes"][-1] = {"as_int": size}

    good = linear_pt2(folder / "good.pt2").read_bytes()
    path = folder / f"{name}.pt2"
    path.write_bytes(rebuilt(good, json_changes={"models/model.json": grow}))
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


HUGE: dict[str, Callable[[Path], tuple[str, Path, str]]] = {
    "onnx": lambda f: ("onnx", huge_onnx(f), ""),
    "pt2": lambda f: ("pt2", claimed(f, "m", 1 << 60), ""),
    "torchscript": lambda f: ("torchscript", torchscripts(f, "Linear")["Linear"], sized(1 << 31, 1 << 31)),
    "mlx": lambda f: ("mlx", mlx_function(f / "m.mlxfn"), sized(1 << 31, 1 << 31)),
    "safetensors": lambda f: ("safetensors", written(f / "m", tensors(**{"one.weight": (1 << 20, 1 << 20), "one.bias": (1 << 20,)})),
                              model_about.encode(architecture={"type": "mlp", "layers": ["one"]})),
    "coreml": lambda f: ("coreml", written(f / "m.mlmodel", sized_coreml(1 << 40)), ""),
    "mlx-lm": lambda f: ("mlx-lm", written(f / "m.gguf", gguf([], [tensor("a", *[(1 << 32) - 1] * 4)], data=bytes(256))), ""),
}  # fmt: skip


def sized(*shape: int) -> str:
    """A manifest that claims an input of this shape."""
    return model_about.encode((TensorSpec(name="x", dtype="float32", shape=shape),))


@pytest.mark.parametrize("name", HUGE)
async def test_sizes_out_of_all_reason_are_refused_or_fail_in_every_format(tmp_path: Path, name: str) -> None:
    kind, path, said = HUGE[name](tmp_path)
    async with running_pool(tmp_path, memory_base=LIMIT) as pool:
        with pytest.raises(FailedPrecondition) as failed:
            await pool.inspect(ModelFile(name, kind, path, path.stat().st_size, about=said))
        assert str(tmp_path) not in failed.value.message
        assert pool.statistics()["crashes"] == 0
        await goes_on(pool, tmp_path)


def test_every_format_that_carries_models_has_a_huge_one() -> None:
    assert set(HUGE) == set(ENTRIES) - {"builtin"}
