"""Where torch and onnxruntime run a model, and what they say of a device that is not here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loaders.api import About, DeviceMissing
from loaders.onnx_loader import OnnxLoader
from tests.support.models import linear_onnx

torch = pytest.importorskip("torch")
from loaders.torch_devices import choose_device  # noqa: E402 - needs torch


@pytest.mark.parametrize("wanted", ["cuda", "tensorrt", "mps"])
def test_torch_runs_on_no_other_device_than_the_one_that_is_demanded(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceMissing, match=wanted):
        choose_device(wanted)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")


def test_torch_takes_no_more_of_a_card_than_was_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[tuple[float, int]] = []
    card: Any = type("Properties", (), {"total_memory": 1000})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, number: bounds.append((share, number)))
    assert choose_device("tensorrt", 250) == choose_device("auto", 5000) == choose_device("cuda") == torch.device("cuda", 0)
    assert bounds == [(0.25, 0), (1.0, 0)]
    assert choose_device("cpu", 250) == torch.device("cpu")


def test_onnxruntime_does_not_go_on_on_the_cpu_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves out a provider that is installed and does not start, with a line in a log."""
    model = linear_onnx(tmp_path / "m.onnx")
    real = __import__("onnxruntime").InferenceSession
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])

    def started(data: bytes, options: Any, *, providers: list[str], provider_options: list[dict[str, str]]) -> Any:
        assert provider_options[0]["gpu_mem_limit"] == "7"
        return real(data, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr("onnxruntime.InferenceSession", started)
    with pytest.raises(DeviceMissing, match="could not start"):
        OnnxLoader().load(model, 1, About(device="cuda", gpu_memory=7))
    assert OnnxLoader().load(model, 1, About(device="auto", gpu_memory=7)).schema.inputs
