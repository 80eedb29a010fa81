"""silero-vad in the forms that its package does not ship; run by `tests.support.loader_cases` in a process of its own: FOLDER.

The package has an ONNX file and a TorchScript that keeps its state to itself. Here its 16 kHz network becomes a
TorchScript with the state in the open, and its weights a torch program, an MLX function and (with coremltools) a CoreML package,
each ``(input [1, 576], memory [2, 1, 128]) -> (output [1, 1], memoryN [2, 1, 128])``. (CoreML keeps the word state for
itself.)
"""

import sys
import warnings
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

warnings.simplefilter("ignore")
import torch  # noqa: E402

STEP = 128
"""Samples between two windows of the spectrum; the last window is filled by mirroring 64 samples."""


def package(name: str) -> str:
    return str(distribution("silero-vad").locate_file(f"silero_vad/data/{name}"))


class Vad(torch.nn.Module):
    """The same computation from plain layers."""

    def __init__(self, weights):
        super().__init__()
        n = torch.nn
        self.stft = n.Conv1d(1, 258, 256, STEP, bias=False)
        self.convs = n.ModuleList(
            [n.Conv1d(129, 128, 3, 1, 1), n.Conv1d(128, 64, 3, 2, 1), n.Conv1d(64, 64, 3, 2, 1), n.Conv1d(64, 128, 3, 1, 1)]
        )
        self.ih, self.hh = n.Linear(128, 512), n.Linear(128, 512)
        self.final = n.Conv1d(128, 1, 1)
        self.load_state_dict(weights)

    def forward(self, input, memory):
        h, c = memory[0], memory[1]
        y = self.stft(torch.nn.functional.pad(input.unsqueeze(1), (0, 64), "reflect"))
        y = torch.sqrt(y[:, :129] ** 2 + y[:, 129:] ** 2)
        for conv in self.convs:
            y = torch.relu(conv(y))
        gates = self.ih(y.squeeze(-1)) + self.hh(h)
        i, f, g, o = gates[:, :128], gates[:, 128:256], gates[:, 256:384], gates[:, 384:]
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return torch.sigmoid(self.final(torch.relu(h).unsqueeze(-1))).squeeze(-1), torch.stack([h, c])


def weights_of(model):
    found = dict(model.state_dict())
    out = {"stft.weight": found["stft.forward_basis_buffer"]}
    for part in ("weight", "bias"):
        out |= {f"convs.{i}.{part}": found[f"encoder.{i}.reparam_conv.{part}"] for i in range(4)}
        out |= {f"{side}.{part}": found[f"decoder.rnn.{part}_{side}"] for side in ("ih", "hh")}
        out[f"final.{part}"] = found[f"decoder.decoder.2.{part}"]
    return out


def mlx_function(weights, path):
    import mlx.core as mx

    def array(name):
        """MLX has the channels last; what is not contiguous would be corrupted by the export."""
        a = weights[name].numpy()
        return mx.array(np.ascontiguousarray(a.transpose(0, 2, 1) if a.ndim == 3 else a))

    w = {name: array(name) for name in weights}
    mirrored = mx.array(np.r_[np.arange(576), 574 - np.arange(64)].astype(np.int32))

    def vad(x, memory):
        h, c = memory[0], memory[1]
        y = mx.conv1d(mx.take(x, mirrored, axis=1)[:, :, None], w["stft.weight"], stride=STEP)
        y = mx.sqrt(y[:, :, :129] ** 2 + y[:, :, 129:] ** 2)
        for i, stride in enumerate((1, 2, 2, 1)):
            y = mx.maximum(mx.conv1d(y, w[f"convs.{i}.weight"], stride=stride, padding=1) + w[f"convs.{i}.bias"], 0)
        gates = y[:, 0, :] @ w["ih.weight"].T + w["ih.bias"] + h @ w["hh.weight"].T + w["hh.bias"]
        i, f, g, o = mx.split(gates, 4, axis=1)
        c = mx.sigmoid(f) * c + mx.sigmoid(i) * mx.tanh(g)
        h = mx.sigmoid(o) * mx.tanh(c)
        return mx.sigmoid(mx.maximum(h, 0) @ w["final.weight"][:, 0, :].T + w["final.bias"]), mx.stack([h, c])

    mx.export_function(str(path), vad, mx.zeros((1, 576)), mx.zeros((2, 1, 128)))


def coreml_package(module, path):
    import coremltools as ct

    from loaders.archive import pack_folder

    examples = (torch.zeros(1, 576), torch.zeros(2, 1, 128))
    model = ct.convert(
        torch.jit.trace(module, examples), inputs=[ct.TensorType("input", shape=(1, 576), dtype=np.float32), ct.TensorType("memory", shape=(2, 1, 128), dtype=np.float32)],
        outputs=[ct.TensorType("output", dtype=np.float32), ct.TensorType("memoryN", dtype=np.float32)], convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17, compute_precision=ct.precision.FLOAT16, skip_model_load=True,
    )  # fmt: skip
    model.save(str(path.with_suffix(".mlpackage")))
    pack_folder(path.with_suffix(".mlpackage"), path)


def main():
    folder = Path(sys.argv[1])
    inner = torch.jit.load(package("silero_vad.jit"))._model
    module = Vad(weights_of(inner)).eval()
    if "coreml" in sys.argv:
        coreml_package(module, folder / "silero.coreml")
        return
    inner.save(str(folder / "silero.pt"))
    torch.export.save(torch.export.export(module, (torch.zeros(1, 576), torch.zeros(2, 1, 128))), str(folder / "silero.pt2"))
    mlx_function(weights_of(inner), folder / "silero.mlxfn")


if __name__ == "__main__":
    main()
