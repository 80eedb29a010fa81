"""CoreML models through Apple's own runtime, on Macs. Not run here, but for what `loaders.coreml.native_values` has of it.

CoreML compiles a model into a folder before it runs it, so this needs an agent that may write files
(``agents.file_bytes``) and coremltools; without either, the translation to ONNX is used on Macs too, as it is for models
that take or give what is no tensor (images).
"""

from __future__ import annotations

import importlib.util
import os
import resource
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loaders.api import About, Array, InferenceFailed, LoadedModel, ModelRejected, ModelSchema
from loaders.archive import read_archive
from loaders.checks import check_inputs
from loaders.coreml.native_values import Plan, answers, by_rows, declared, read_plan, requests
from loaders.coreml.package import translate
from loaders.messages import clean_message

_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, OSError)
Predict = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def can_run() -> bool:
    """Whether coremltools is here and this process may write what CoreML compiles."""
    writable = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0 and os.access(tempfile.gettempdir(), os.W_OK)
    return writable and importlib.util.find_spec("coremltools") is not None


def load_native(path: Path, about: About) -> LoadedModel | None:
    """None if tensors cannot stand for what the model takes and gives. Raises `ModelRejected`."""
    plan = read_plan(path)
    if not plan.portable:
        return None
    import coremltools  # pyright: ignore[reportMissingImports]

    folder = tempfile.TemporaryDirectory(prefix="coreml-")
    try:
        model: Any = coremltools.models.MLModel(str(_unpacked(path, Path(folder.name))))
    except _ERRORS as e:
        raise ModelRejected(f"CoreML refused the model: {clean_message(e)}") from e
    return NativeModel(model.predict, plan, schema_of(path, plan, about), folder)


def schema_of(path: Path, plan: Plan, about: About) -> ModelSchema:
    """The manifest's, else that of the translation: what is registered on a Mac must fit other systems. Only what has no
    translation is described as Apple's runtime takes it."""
    if about.inputs:
        return ModelSchema(about.inputs, about.outputs or declared(plan).outputs)
    from loaders.onnx_loader import OnnxModel, session_of

    try:
        return OnnxModel(session_of(translate(path), 1, "cpu")).schema
    except ModelRejected:
        return declared(plan)


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
    """``predict``: coremltools' `MLModel.predict` for several requests at once. ``folder`` is kept as long as the model."""

    def __init__(self, predict: Predict, plan: Plan, schema: ModelSchema, folder: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self._predict, self._plan, self._folder = predict, plan, folder
        self.schema = schema
        self._rows = by_rows(plan, schema)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises `InputRejected`, `InferenceFailed`."""
        check_inputs(inputs, self.schema.inputs)
        try:
            asked = requests(self._plan, inputs, self._rows)
            return answers(self._plan, self.schema, self._predict(asked) if asked else [], self._rows)
        except _ERRORS as e:
            raise InferenceFailed(f"CoreML failed: {clean_message(e)}") from e
