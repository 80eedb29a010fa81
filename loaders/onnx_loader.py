"""ONNX models through onnxruntime, on the best of what the node has.

A model is loaded from memory and may refer to data only within its own folder, which comes as one archive and is not
unpacked either: nothing on the machine's disk can be read through it. Custom operator libraries are never registered.
bfloat16, which numpy does not have, goes in and out as float32.
"""

from __future__ import annotations

import ctypes
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from loaders import onnx_bytes
from loaders.api import NOTHING, About, Array, DeviceMissing, InferenceFailed, LoadedModel, ModelRejected, ModelSchema, TensorSchema
from loaders.archive import read_archive
from loaders.checks import check_inputs, native
from loaders.messages import clean_message

_DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bfloat16)": "float32",
    "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(uint8)": "uint8", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64",
    "tensor(bool)": "bool", "tensor(string)": "str",
}  # fmt: skip
_BFLOAT16 = "tensor(bfloat16)"
_BFLOAT16_NUMBER = 16
"""In onnx.proto's TensorProto.DataType."""
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {
    "auto": (_CUDA, "CoreMLExecutionProvider"),
    "cuda": (_CUDA,),
    "tensorrt": ("TensorrtExecutionProvider", _CUDA),
    "mps": ("CoreMLExecutionProvider",),
    "cpu": (),
}
"""Device -> what is tried, best first; the CPU is always last. TensorRT compiles for minutes, so it must be asked for."""
# onnxruntime derives its exceptions from Exception, one class per status, and exports none of them as a base
_ORT_ERRORS = tuple(e for e in vars(ort.capi.onnxruntime_pybind11_state).values() if isinstance(e, type) and issubclass(e, Exception))  # pyright: ignore[reportAttributeAccessIssue]


class OnnxLoader:
    format = "onnx"

    def load(self, path: Path, threads: int, about: About = NOTHING) -> LoadedModel:
        """Raises `ModelRejected`."""
        try:
            data, beside = _read(path)
        except OSError as e:
            raise ModelRejected("the model file cannot be read") from e
        return OnnxModel(session_of(data, threads, about.device, beside, about.gpu_memory))


def choose_providers(device: str, available: Sequence[str]) -> list[str]:
    """Execution providers for a device, of those that are here. Raises `DeviceMissing`."""
    wanted = PROVIDERS.get(device)
    if wanted is None or (device not in ("auto", "cpu") and not set(wanted[:1]) & set(available)):
        raise DeviceMissing(f"onnxruntime, as it is installed here, has no execution provider for {device!r}")
    return [p for p in wanted if p in available] + [_CPU]


def provider_options(providers: Sequence[str], gpu_memory: int) -> list[dict[str, str]]:
    """See onnxruntime's documentation of the CUDA execution provider, ``gpu_mem_limit``: bytes of its arena. 0: no bound."""
    bound = {"gpu_mem_limit": str(gpu_memory), "arena_extend_strategy": "kSameAsRequested"}
    return [bound if gpu_memory and p == _CUDA else {} for p in providers]


def _read(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """The model and the files beside it that its tensors lie in."""
    if not zipfile.is_zipfile(path):
        data = path.read_bytes()
        onnx_bytes.check_shape_of_file(data)
        onnx_bytes.check_types(data)
        if onnx_bytes.external_files(data):
            raise ModelRejected("the model keeps tensors in other files; add its folder, or save it as one file")
        return data, {}
    members = read_archive(path)
    names = [n for n in members if n.endswith(".onnx") and "/" not in n]
    if len(names) != 1:
        raise ModelRejected("the model's folder must hold exactly one .onnx file at its top")
    data = members.pop(names[0])
    onnx_bytes.check_shape_of_file(data)
    onnx_bytes.check_types(data)
    needed = onnx_bytes.external_files(data)
    if any(n not in members for n in needed):
        raise ModelRejected("the model keeps tensors in files that are not in its folder")
    return data, {n: members[n] for n in needed}


def session_of(
    data: bytes, threads: int, device: str = "auto", beside: Mapping[str, bytes] | None = None, gpu_memory: int = 0
) -> ort.InferenceSession:
    """``beside``: files with tensors by the name that the model uses. Raises `ModelRejected`, `DeviceMissing`."""
    providers = choose_providers(device, ort.get_available_providers())
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # spinning threads would burn the cores of an idle node
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if beside:
        contents = list(beside.values())
        options.add_external_initializers_from_files_in_memory(list(beside), contents, [len(c) for c in contents])
    try:
        session = ort.InferenceSession(data, options, providers=providers, provider_options=provider_options(providers, gpu_memory))
    except (*_ORT_ERRORS, RuntimeError, ValueError) as e:
        raise ModelRejected(f"onnxruntime refused the model: {clean_message(e)}") from e
    if device not in ("auto", "cpu") and providers[0] not in session.get_providers():
        # a provider whose libraries or driver are amiss is left out with a warning only
        raise DeviceMissing(f"onnxruntime could not start its execution provider for {device!r}")
    return session


class OnnxModel:
    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.schema = ModelSchema(
            inputs=tuple(_schema(i) for i in session.get_inputs()),
            outputs=tuple(_schema(o) for o in session.get_outputs()),
        )
        self._names = [t.name for t in self.schema.outputs]
        self._brain = {i.name for i in session.get_inputs() if i.type == _BFLOAT16}
        self._any_brain = bool(self._brain) or any(o.type == _BFLOAT16 for o in session.get_outputs())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises `InputRejected`, `InferenceFailed`."""
        check_inputs(inputs, self.schema.inputs)
        feed = {name: native(array) for name, array in inputs.items()}
        try:
            values: list[Any] = self._run_values(feed) if self._any_brain else self._session.run(self._names, feed)  # pyright: ignore[reportAssignmentType]
        except (*_ORT_ERRORS, RuntimeError, ValueError) as e:
            raise InferenceFailed(f"onnxruntime failed: {clean_message(e)}") from e
        return {name: np.asarray(value) for name, value in zip(self._names, values, strict=True)}

    def _run_values(self, feed: Mapping[str, Array]) -> list[Array]:
        """With onnxruntime's own values, which know bfloat16."""
        given = {name: _to_bfloat16(a) if name in self._brain else ort.OrtValue.ortvalue_from_numpy(a) for name, a in feed.items()}
        found: Sequence[Any] = self._session.run_with_ort_values(self._names, given)
        return [_from_bfloat16(v) if v.data_type() == _BFLOAT16 else v.numpy() for v in found]


def _to_bfloat16(array: Array) -> ort.OrtValue:
    """Rounded to the nearest, ties to even. NaN stays NaN."""
    bits = array.astype(np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    halves = np.ascontiguousarray(np.where(np.isnan(array), np.uint16(0x7FC0), rounded))
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(halves, _BFLOAT16_NUMBER)


def _from_bfloat16(value: Any) -> Array:
    size = value.tensor_size_in_bytes()
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(value.shape())


def _schema(arg: Any) -> TensorSchema:
    dtype = _DTYPES.get(arg.type)
    if dtype is None:
        raise ModelRejected(
            f"tensor {arg.name!r} is of type {arg.type}, which cannot leave the model (for scikit-learn: export with zipmap off)"
        )
    # unnamed axes come as None or "unk__N"
    # unk__N (onnxruntime) and ? (Paddle's exporter, for several axes of different sizes) are no names of axes
    shape = tuple(None if d is None or (isinstance(d, str) and (d == "?" or d.startswith("unk__"))) else d for d in arg.shape)
    return TensorSchema(arg.name, dtype, shape)
