"""PyTorch archives that try to run code: none does, whether it is refused or loads without its payload."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loaders.api import ModelRejected
from loaders.sanitize_pt2 import Pt2Limits, check_expression, check_target, sanitize
from tests.support.models import linear_pt2

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return linear_pt2(tmp_path_factory.mktemp("pt2") / "good.pt2").read_bytes()


def rebuilt(
    data: bytes,
    *,
    json_changes: dict[str, Change] | None = None,
    replace: dict[str, bytes] | None = None,
    add: dict[str, bytes] | None = None,
) -> bytes:
    """The archive with some members changed. Names are without the top folder."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        root = source.namelist()[0].partition("/")[0]
        for info in source.infolist():
            name = info.filename.partition("/")[2]
            content = source.read(info)
            if json_changes and name in json_changes:
                document = json.loads(content)
                json_changes[name](document)
                content = json.dumps(document).encode()
            target.writestr(f"{root}/{name}", (replace or {}).get(name, content))
        for name, content in (add or {}).items():
            target.writestr(name if name.startswith(("..", "/")) else f"{root}/{name}", content)
    return out.getvalue()


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def program(change: Change) -> dict[str, Change]:
    return {"models/model.json": change}


def graph(d: dict[str, Any]) -> dict[str, Any]:
    return d["graph_module"]["graph"]


def set_expression(text: str) -> Change:
    def change(d: dict[str, Any]) -> None:
        graph(d)["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text

    return change


def set_node(**values: Any) -> Change:
    return lambda d: graph(d)["nodes"][0].update(values)


def rename_input(d: dict[str, Any]) -> None:
    """torch pastes the names of placeholders into the source of `forward`."""
    evil = "x=__import__('os').mkdir('MARKER')"
    text = json.dumps(d).replace('"name": "x"', f'"name": "{evil}"')
    d.clear()
    d.update(json.loads(text))
    graph(d)["tensor_values"][evil] = graph(d)["tensor_values"]["x"]


def tree(d: dict[str, Any]) -> None:
    spec = json.loads(d["graph_module"]["module_call_graph"][0]["signature"]["in_spec"])
    spec[1]["children_spec"][1]["context"] = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "x"})
    d["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps(spec)


def first_payload(**values: Any) -> dict[str, Change]:
    def change(d: dict[str, Any]) -> None:
        next(iter(d["config"].values())).update(values)

    return {"data/weights/model_weights_config.json": change}


def hostile(good: bytes, marker: Path) -> dict[str, bytes]:
    code = f"__import__('os').mkdir({str(marker)!r})"
    evil_pickle = pickle.dumps(Payload(marker))

    def named(change: Change) -> bytes:
        return rebuilt(good, json_changes=program(change))

    def argument(arg: Any) -> Change:
        return lambda d: graph(d)["nodes"][0]["inputs"][0].update({"arg": arg})

    return {
        "expression": named(set_expression(code)),
        "expression-attribute": named(set_expression("Symbol('s0').__class__")),
        "guards": named(lambda d: d.update(guards_code=[code])),
        "placeholder": named(rename_input),
        "argument-name": named(lambda d: graph(d)["nodes"][0]["inputs"][0].update({"name": f"self, x={code}"})),
        "tree": named(tree),
        "forward-args": named(lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(forward_arg_names=[f"x={code}"])),
        "target-os": named(set_node(target="torch.os.system")),
        "target-load": named(set_node(target="torch.load")),
        "target-custom": named(set_node(target="torch.ops.mylib.op.default")),
        "target-file": named(set_node(target="torch.ops.aten.from_file.default")),
        "target-raw-memory": named(set_node(target="torch.ops.aten._unsafe_masked_index.default")),
        "custom-object": named(argument({"as_custom_obj": {"name": "o", "class_fqn": "c"}})),
        "pickled-weight": rebuilt(good, json_changes=first_payload(use_pickle=True), replace={"data/weights/weight_0": evil_pickle}),
        "opaque-constant": rebuilt(
            good,
            json_changes={"data/constants/model_constants_config.json": lambda d: d.update(config={"o": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}})},
            add={"data/constants/opaque_obj_0": evil_pickle},
        ),
        "payload-path": rebuilt(good, json_changes=first_payload(path_name="../../../etc/passwd")),
        "legacy-weights": rebuilt(good, add={"data/weights/model.pt": evil_pickle}),
        "aotinductor": rebuilt(good, add={"data/aotinductor/model/x.so": b"\x7fELF"}),
        "traversal": rebuilt(good, add={"../evil": b""}),
        "absolute": rebuilt(good, add={"/tmp/evil": b""}),
        "two-programs": rebuilt(good, add={"models/b.json": b"{}"}),
        "not-zip": b"PK\x03\x04 and no more",
        "empty": b"",
        "bare-pickle": evil_pickle,
        "cuda": named(lambda d: graph(d)["tensor_values"]["x"]["device"].update(type="cuda")),
    }  # fmt: skip


CASES = (
    "expression", "expression-attribute", "guards", "placeholder", "argument-name", "tree", "forward-args", "target-os", "target-load",
    "target-custom", "target-file", "target-raw-memory", "custom-object", "pickled-weight", "opaque-constant", "payload-path",
    "legacy-weights", "aotinductor", "traversal", "absolute", "two-programs", "not-zip", "empty", "bare-pickle", "cuda",
)  # fmt: skip

RUN = """
import sys, warnings
from pathlib import Path
import numpy as np
warnings.simplefilter("ignore")
from loaders.api import LoaderError
from loaders.torch_loader import TorchLoader
for name in sys.argv[1:]:
    try:
        model = TorchLoader().load(Path(name), 1)
        model.run({t.name: np.ones((2, 4), t.dtype) for t in model.schema.inputs})
        print(Path(name).stem, "ran")
    except LoaderError as e:
        print(Path(name).stem, type(e).__name__, e)
"""


@pytest.mark.parametrize("case", CASES)
def test_hostile_archives_are_refused(good: bytes, tmp_path: Path, case: str) -> None:
    marker = tmp_path / "pwned"
    with pytest.raises(ModelRejected) as refused:
        sanitize(hostile(good, marker)[case])
    assert str(tmp_path) not in str(refused.value)
    assert not marker.exists()


def test_nothing_hostile_runs_in_the_loader(good: bytes, tmp_path: Path) -> None:
    marker = tmp_path / "pwned"
    archives = hostile(good, marker)
    archives["samples"] = rebuilt(good, replace={"data/sample_inputs/model.pt": pickle.dumps(Payload(marker))})
    for name, data in archives.items():
        (tmp_path / f"{name}.pt2").write_bytes(data)
    names = [str(tmp_path / f"{n}.pt2") for n in archives]
    done = subprocess.run([sys.executable, "-c", RUN, *names], capture_output=True, text=True, check=True, cwd=tmp_path)
    outcomes = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert not marker.exists()
    assert not (tmp_path / "MARKER").exists()
    assert outcomes.pop("samples") == "ran"
    assert all(o.startswith("ModelRejected") for o in outcomes.values()), outcomes


def test_the_payload_is_live_without_sanitising(good: bytes, tmp_path: Path) -> None:
    """The control: torch alone does run what sample inputs bring along."""
    marker = tmp_path / "pwned"
    path = tmp_path / "samples.pt2"
    path.write_bytes(rebuilt(good, replace={"data/sample_inputs/model.pt": pickle.dumps(Payload(marker))}))
    script = "import sys, torch, contextlib\nwith contextlib.suppress(Exception): torch.export.load(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, check=False)
    assert marker.exists()


def test_bombs_are_bounded_by_what_really_unpacks(good: bytes) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("m/data/weights/weight_0", bytes(4 << 20))
    with pytest.raises(ModelRejected, match="unpacks to more"):
        sanitize(bomb.getvalue(), Pt2Limits(max_bytes=1 << 20))
    with pytest.raises(ModelRejected, match="too many"):
        sanitize(good, Pt2Limits(max_members=3))
    deep = b"[" * 100_000
    with pytest.raises(ModelRejected, match="not JSON"):
        sanitize(rebuilt(good, replace={"models/model.json": deep}))
    nested = json.dumps({"a": json.loads("[" * 200 + "]" * 200)}).encode()
    with pytest.raises(ModelRejected, match="deeply"):
        sanitize(rebuilt(good, replace={"models/model.json": nested}))


def test_metadata_and_extra_files_are_left_out(good: bytes) -> None:
    clean = sanitize(rebuilt(good, add={"extra/notes.txt": b"hello"}))
    with zipfile.ZipFile(clean) as z:
        names = [n.partition("/")[2] for n in z.namelist()]
        text = z.read(next(n for n in z.namelist() if n.endswith("models/model.json"))).decode()
    assert "extra/notes.txt" not in names
    assert "stack_trace" not in text


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s0', positive=True, integer=True)",
        "Mul(Integer(2), Symbol('s77', integer=True))",
        "4",
        "-1",
        "Add(s0, -1)",
        "Pow(s0, Integer(2))",
    ],
)
def test_arithmetic_expressions_pass(text: str) -> None:
    check_expression(text)


@pytest.mark.parametrize(
    "text",
    ["Pow(Integer(10), Integer(1000000000))", "Pow(s0, s0)", "open('x')", "lambda: 1", "Symbol('s0').x", "s0 if 1 else 2", "True", "[1]", "Symbol('a b')",
     "Symbol(s0)", "Symbol('s0', evil=True)", "Add(*s0)", "9" * 30, "Add(" * 200, "print", "f'{1}'", ""],
)  # fmt: skip
def test_other_expressions_do_not(text: str) -> None:
    with pytest.raises(ModelRejected):
        check_expression(text)


def test_targets() -> None:
    for fine in ("torch.ops.aten.add.Tensor", "torch.ops.aten._softmax.default", "_operator.mul", "torch.sym_max"):
        check_target(fine)
    for bad in (
        "torch.ops.aten.__class__.x",
        "torch.ops.aten.set_.source_Tensor",
        "_operator.attrgetter",
        "torch.ops.higher_order.cond",
        "math.__loader__",
        "#x",
    ):
        with pytest.raises(ModelRejected):
            check_target(bad)
