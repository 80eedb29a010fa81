"""TorchScript: what is run gives its answers and leaves nothing behind; what reaches for more is refused by name."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from loaders.api import About, InferenceFailed, ModelRejected, TensorSchema
from loaders.sanitize_torchscript import TorchScriptLimits, check_code, check_operator, check_pickle, sanitize
from tests.support.models import WEIGHTS
from tests.support.torchscript import GOOD, HOSTILE, changed, torchscripts

ROWS = About(inputs=(TensorSchema("x", "float32", ("N", 4)),))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return torchscripts(tmp_path_factory.mktemp("ts"), *GOOD, *HOSTILE)


def load(path: Path, about: About = ROWS):
    from loaders.torchscript_loader import TorchScriptLoader

    return TorchScriptLoader().load(path, 1, about)


def test_a_model_runs_and_its_outputs_are_found_out(files: dict[str, Path]) -> None:
    model = load(files["Linear"])
    assert [(t.name, t.dtype, t.shape) for t in model.schema.outputs] == [("output_0", "float32", ("N", 2)), ("output_1", "int64", ("N",))]
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    got = model.run({"x": x})
    np.testing.assert_allclose(got["output_0"], x @ WEIGHTS)
    assert got["output_1"].tolist() == (x @ WEIGHTS).argmax(1).tolist()


def test_no_task_sees_what_another_left_in_the_model(files: dict[str, Path]) -> None:
    model = load(files["Counter"])
    for _ in range(3):
        got = model.run({"x": np.ones((1, 4), np.float32)})
        assert (int(got["output_0"]), got["output_1"].tolist()) == (1, [4.0])


def test_numbers_as_arguments(files: dict[str, Path]) -> None:
    inputs = (TensorSchema("x", "float32", (2,)), TensorSchema("times", "int64", ()))
    about = About(inputs=inputs, outputs=(TensorSchema("y", "float32", (None, 2)),))
    model = load(files["Number"], about)
    assert model.run({"x": np.zeros(2, np.float32), "times": np.array(3)})["y"].tolist() == [[0.5, 0.5], [-0.5, -0.5], [2.5, 2.5]]
    bad = About(inputs=(inputs[0], TensorSchema("times", "int64", (1,))), outputs=about.outputs)
    with pytest.raises(InferenceFailed, match="must have no axes"):
        load(files["Number"], bad).run({"x": np.zeros(2, np.float32), "times": np.array([3])})
    with pytest.raises(ModelRejected, match="takes 2 to 3 inputs"):
        load(files["Number"], ROWS)
    with pytest.raises(ModelRejected, match="manifest must name them"):
        load(files["Linear"], About())


@pytest.mark.parametrize(
    ("name", "words"),
    [("Reads", "from_file"), ("Hidden", "from_file"), ("Saves", "save"), ("Forks", "fork"), ("Raw", "resize_"), ("Loads", "__getstate__|__setstate__|from_file")],
)  # fmt: skip
def test_what_reaches_for_more_is_refused_by_name(
    files: dict[str, Path], name: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelRejected, match=words):
        load(files[name])
    assert not (tmp_path / "MARKER").exists()


def test_the_compiled_graphs_are_checked_too(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where reading the code would miss something: nested blocks, other methods, inner modules."""
    from loaders import sanitize_torchscript

    monkeypatch.setattr(sanitize_torchscript, "check_code", lambda source: None)
    monkeypatch.chdir(tmp_path)
    for name in ("Reads", "Hidden", "Saves", "Forks", "Raw"):
        with pytest.raises(ModelRejected, match="is not allowed"):
            load(files[name])
    assert not (tmp_path / "MARKER").exists()


@pytest.mark.parametrize(
    "code",
    [
        "def forward(self, x):\n  return torch.from_file('a')", "def f(self, x):\n  g = torch.from_file\n  return g('a')",
        "def f(x):\n  return x.set_(x)", "def f(x):\n  return ops.aten.save(x, 'a')", "def f(x):\n  return ops.quantized.add(x, x)",
        "def f(x):\n  return ops.prim.rpc_sync(x)", "def f(x):\n  return getattr(torch, 'from_file')('a')",
        "def f(x):\n  return fork(x)", "def f(x):\n  return torch._sparse_coo_tensor_unsafe(x)", "def __setstate__(self, x):\n  pass",
        "w : __torch__.torch.classes.quantized.Conv2dPackedParamsBase", "def f(x) -> :", "(" * 1000,
    ],
)  # fmt: skip
def test_code_that_is_refused(code: str) -> None:
    with pytest.raises(ModelRejected):
        check_code(code.encode())


def test_operators_by_namespace_and_name() -> None:
    for namespace, name in (("aten", "conv2d"), ("aten", "__getitem__"), ("aten", "_convolution"), ("prim", "Loop")):
        check_operator(namespace, name)
    for namespace, name in (
        ("aten", "from_file"),
        ("aten", "_foobar"),
        ("prim", "PythonOp"),
        ("c10d", "send"),
        ("quantized", "add"),
        ("aten", "__setstate__"),
    ):
        with pytest.raises(ModelRejected, match=f"{namespace}::{name}"):
            check_operator(namespace, name)


class Evil:
    def __reduce__(self):
        return (print, ("evil",))


def test_pickles_in_every_place(files: dict[str, Path], tmp_path: Path) -> None:
    for protocol in (2, 4):
        evil = pickle.dumps(Evil(), protocol=protocol)
        with pytest.raises(ModelRejected, match="pickle"):
            check_pickle(evil)
        for member in ("data.pkl", "constants.pkl"):
            with pytest.raises(ModelRejected, match="pickle"):
                load(changed(files["Linear"], tmp_path / "m.pt", lambda n, c, m=member, e=evil: e if n == m else c))
    native = b"\x80\x02c__torch__.torch.classes.quantized\nConv2dPackedParamsBase\n."
    with pytest.raises(ModelRejected, match=r"torch\.classes"):
        check_pickle(native)
    with pytest.raises(ModelRejected, match="malformed"):
        check_pickle(b"\x80\x02(((")


def test_archives_that_are_broken_or_hostile(files: dict[str, Path], tmp_path: Path) -> None:
    good = files["Linear"].read_bytes()
    with pytest.raises(ModelRejected, match="unpacks"):
        sanitize(good, TorchScriptLimits(max_bytes=100))
    with pytest.raises(ModelRejected, match="too many"):
        sanitize(good, TorchScriptLimits(max_members=2))
    for data in (b"", b"PK", good[: len(good) // 2]):
        with pytest.raises(ModelRejected, match="whole zip"):
            sanitize(data)
    path = tmp_path / "m.pt"
    for name in ("../evil", "code/../../evil.py", "lib.so", "code/evil.so"):
        path.write_bytes(good)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"Linear/{name}", b"x")
        with pytest.raises(ModelRejected):
            sanitize(path.read_bytes())
    with pytest.raises(ModelRejected, match="not a whole"):
        sanitize(changed(files["Linear"], path, lambda n, c: None if n == "data.pkl" else c).read_bytes())
    # what torch reads only to tell where errors are does not reach it
    dropped = changed(files["Linear"], path, lambda n, c: b"junk" if n.endswith(".debug_pkl") else c)
    assert "model/code/__torch__.py.debug_pkl" not in zipfile.ZipFile(sanitize(dropped.read_bytes())).namelist()
    load(dropped)
