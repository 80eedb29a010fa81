"""PyTorch programs with numbers that numpy has not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loaders.api import InputRejected, LoadedModel, ModelRejected
from loaders.trial import try_out

EXPORT = """
import sys, torch
class Net(torch.nn.Module):
    def forward(self, a, b):
        return a * 2, a.float() + b, b.to(torch.bfloat16)
class Eight(torch.nn.Module):
    def forward(self, a):
        return a.to(torch.float8_e4m3fn)
args = (torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3))
torch.export.save(torch.export.export(Net(), args), sys.argv[1] + "/brain.pt2")
torch.export.save(torch.export.export(Eight(), args[1:]), sys.argv[1] + "/eight.pt2")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pt2")
    subprocess.run([sys.executable, "-W", "ignore", "-c", EXPORT, str(out)], check=True, capture_output=True)
    return out


def load(path: Path) -> LoadedModel:
    from loaders.torch_loader import TorchLoader

    return TorchLoader().load(path, 1)


def test_bfloat16_goes_in_and_out_as_float32(folder: Path) -> None:
    model = load(folder / "brain.pt2")
    assert [t.dtype for t in model.schema.inputs] == ["float32", "float32"]
    assert [t.dtype for t in model.schema.outputs] == ["float32"] * 3
    # 1.00390625 is between two numbers of bfloat16, 1.0 the even one
    a, b = np.array([1.00390625, 1.5, np.inf], np.float32), np.array([1.00390625, 0, -1], np.float32)
    doubled, mixed, narrow = (model.run({"a": a, "b": b})[f"output_{i}"] for i in range(3))
    assert [x.dtype for x in (doubled, mixed, narrow)] == [np.float32] * 3
    assert doubled.tolist() == [2.0, 3.0, np.inf]
    assert mixed.tolist() == [2.00390625, 1.5, np.inf]
    assert narrow.tolist() == [1.0, 0.0, -1.0]
    assert set(try_out(model)) == {"output_0", "output_1", "output_2"}
    with pytest.raises(InputRejected, match="must be float32"):
        model.run({"a": a.astype(np.float16), "b": b})


def test_types_without_a_portable_form_are_named(folder: Path) -> None:
    with pytest.raises(ModelRejected, match=r"output_0.*float8_e4m3fn.*no portable form"):
        load(folder / "eight.pt2")
