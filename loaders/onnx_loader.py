"""ONNX models through onnxruntime, on the CPU.

The model is loaded from bytes and may not refer to data outside itself, so nothing on the machine's
disk can be read through it. Custom operator libraries are never registered.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from loaders import onnx_bytes
from loaders.api import NOTHING, About, Array, InferenceFailed, LoadedModel, ModelRejected, ModelSchema, TensorSchema
from loaders.checks import check_inputs, native
from loaders.messages import clean_message

_DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
    "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(uint8)": "uint8", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64",
    "tensor(bool)": "bool", "tensor(string)": "str",
    "tensor(complex64)": "complex64", "tensor(complex128)": "complex128",
}  # fmt: skip
PROVIDERS = ["CPUExecutionProvider"]
# onnxruntime derives its exceptions from Exception, one class per status, and exports none of them as a base
_ORT_ERRORS = tuple(e for e in vars(ort.capi.onnxruntime_pybind11_state).values() if isinstance(e, type) and issubclass(e, Exception))  # pyright: ignore[reportAttributeAccessIssue]


class OnnxLoader:
    format = "onnx"

    def load(self, path: Path, threads: int, about: About = NOTHING) -> LoadedModel:
        """Raises `ModelRejected`."""
        try:
            data = path.read_bytes()
        except OSError as e:
            raise ModelRejected("the model file cannot be read") from e
        onnx_bytes.check_shape_of_file(data)
        if onnx_bytes.uses_external_data(data):
            raise ModelRejected("the model keeps tensors in other files; save it as one file")
        return OnnxModel(session_of(data, threads))


def session_of(data: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # spinning threads would burn the cores of an idle node
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(data, options, providers=PROVIDERS)
    except (*_ORT_ERRORS, RuntimeError, ValueError) as e:
        raise ModelRejected(f"onnxruntime refused the model: {clean_message(e)}") from e


class OnnxModel:
    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.schema = ModelSchema(
            inputs=tuple(_schema(i) for i in session.get_inputs()),
            outputs=tuple(_schema(o) for o in session.get_outputs()),
        )
        self._names = [t.name for t in self.schema.outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises `InputRejected`, `InferenceFailed`."""
        check_inputs(inputs, self.schema.inputs)
        feed = {name: native(array) for name, array in inputs.items()}
        try:
            values: list[Any] = self._session.run(self._names, feed)  # pyright: ignore[reportAssignmentType]
        except (*_ORT_ERRORS, RuntimeError, ValueError) as e:
            raise InferenceFailed(f"onnxruntime failed: {clean_message(e)}") from e
        return {name: np.asarray(value) for name, value in zip(self._names, values, strict=True)}


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
