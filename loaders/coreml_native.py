"""CoreML models through Apple's own runtime, on Macs. Not run here: there is no Mac to run it on.

CoreML compiles a model into a folder before it runs it, so this needs an agent that may write files
(``agents.file_bytes``) and coremltools; without either, the translation to ONNX is used on Macs too.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loaders.api import About, Array, InferenceFailed, LoadedModel, ModelRejected, ModelSchema, TensorSchema
from loaders.archive import read_archive
from loaders.checks import check_inputs, native
from loaders.messages import clean_message

_DTYPES = {65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8", 65552: "float16"}
_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, OSError)


def can_run() -> bool:
    """Whether coremltools is here and this process may write what CoreML compiles."""
    writable = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0 and os.access(tempfile.gettempdir(), os.W_OK)
    return writable and importlib.util.find_spec("coremltools") is not None


def load_native(path: Path, about: About) -> LoadedModel:
    """Raises `ModelRejected`."""
    import coremltools  # pyright: ignore[reportMissingImports]

    folder = tempfile.TemporaryDirectory(prefix="coreml-")
    try:
        model: Any = coremltools.models.MLModel(str(_unpacked(path, Path(folder.name))))
        return NativeModel(model, about, folder)
    except _ERRORS as e:
        raise ModelRejected(f"CoreML refused the model: {clean_message(e)}") from e


def _unpacked(path: Path, folder: Path) -> Path:
    """The model under a name that CoreML accepts. Names in the archive were checked by `read_archive`."""
    with path.open("rb") as f:
        archive = f.read(2) == b"PK"
    if not archive:
        link = folder / "model.mlmodel"
        link.write_bytes(path.read_bytes())
        return link
    package = folder / "model.mlpackage"
    for name, data in read_archive(path).items():
        target = package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return package


class NativeModel:
    def __init__(self, model: Any, about: About, folder: tempfile.TemporaryDirectory[str]) -> None:
        self._model, self._folder = model, folder
        description = model.get_spec().description
        inputs = about.inputs or tuple(_schema(f) for f in description.input)
        self.schema = ModelSchema(inputs, about.outputs or tuple(_schema(f) for f in description.output))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises `InputRejected`, `InferenceFailed`."""
        check_inputs(inputs, self.schema.inputs)
        try:
            found: dict[str, Any] = self._model.predict({name: native(a) for name, a in inputs.items()})
        except _ERRORS as e:
            raise InferenceFailed(f"CoreML failed: {clean_message(e)}") from e
        return {t.name: _array(found[t.name], t.dtype) for t in self.schema.outputs}


def _array(value: Any, dtype: str) -> Array:
    """A dictionary of probabilities becomes a tensor in the order of its labels, as in the translation."""
    if isinstance(value, dict):
        value = list(value.values())  # pyright: ignore[reportUnknownArgumentType]
    return np.asarray(value, dtype=object if dtype == "str" else dtype)


def _schema(feature: Any) -> TensorSchema:
    kind = feature.type.WhichOneof("Type")
    if kind == "multiArrayType":
        array = feature.type.multiArrayType
        free = array.WhichOneof("ShapeFlexibility") is not None
        return TensorSchema(feature.name, _DTYPES.get(array.dataType, "float32"), tuple(None if free else int(n) for n in array.shape))
    if kind == "dictionaryType":
        return TensorSchema(feature.name, "float64", (None,))
    return TensorSchema(feature.name, {"stringType": "str", "int64Type": "int64"}.get(kind, "float64"), ())
