"""CoreML files to ONNX: ``.mlmodel`` (one protobuf) or ``.mlpackage`` (a folder, here as an archive).

Field numbers are those of Model.proto and FeatureTypes.proto. Nothing is written to disk, nothing of Apple's is needed.
"""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path

import numpy as np

from loaders.api import ModelRejected
from loaders.archive import read_archive
from loaders.coreml import operators_compressed, operators_layers, operators_math, operators_shape, trees
from loaders.coreml.mil import Blobs, read_function
from loaders.coreml.program import Handler, Translation, Unsupported
from loaders.coreml.trees import Feature
from loaders.protobuf import Message

HANDLERS: dict[str, Handler] = {
    **operators_math.HANDLERS, **operators_shape.HANDLERS, **operators_layers.HANDLERS, **operators_compressed.HANDLERS,
}  # fmt: skip
"""MIL operator -> what writes it in ONNX."""
_PROGRAM = 502
_KINDS = {
    300: trees.linear_regressor,
    302: trees.tree_regressor,
    400: trees.linear_classifier,
    402: trees.tree_classifier,
}
_NAMES = {
    200: "pipelines", 201: "pipelines", 202: "pipelines", 301: "support vector machines", 303: "neural networks of the older kind",
    304: "Bayesian regressors", 401: "support vector machines", 403: "neural networks of the older kind", 404: "nearest neighbours",
    500: "neural networks of the older kind", 501: "recommenders", 555: "custom models (code)", 556: "linked models (code)",
}  # fmt: skip


# what Python and numpy raise for values that no sound model has: shapes that do not fit, numbers out of range, missing parts
_UNSOUND = (ValueError, TypeError, KeyError, IndexError, ArithmeticError, StopIteration, struct.error)


def translate(path: Path) -> bytes:
    """The ONNX file of a CoreML model. Raises `ModelRejected`; what cannot be translated is named."""
    try:
        with np.errstate(all="ignore"):
            return _translate(*open_package(path))
    except _UNSOUND as e:
        raise ModelRejected("the CoreML model is malformed") from e


def _translate(model: Message, blobs: Blobs) -> bytes:
    kinds = sorted(n for n in model.numbers() if 200 <= n < 4000)
    if len(kinds) != 1:
        raise ModelRejected("not a CoreML model: it is of no kind, or of several")
    description = model.message(2)
    kind = kinds[0]
    if kind == _PROGRAM:
        if 13 in description:
            raise Unsupported("CoreML models with state cannot be translated and run on this system")
        function = read_function(model.message(_PROGRAM), blobs, description.text(21) or "main")
        return Translation(function).run(HANDLERS)
    handler = _KINDS.get(kind)
    if handler is None:
        raise Unsupported(f"CoreML's {_NAMES.get(kind, f'models of kind {kind}')} cannot be translated and run on this system")
    inputs = [_feature(f) for f in description.messages(1)]
    _check_inputs(inputs)
    return handler(model.message(kind), inputs, [_feature(f) for f in description.messages(10)])


def open_package(path: Path) -> tuple[Message, Blobs]:
    """The model and the weights beside it. Raises `ModelRejected`."""
    if not zipfile.is_zipfile(path):
        try:
            return Message(memoryview(path.read_bytes())), Blobs({})
        except OSError as e:
            raise ModelRejected("the model file cannot be read") from e
    members = read_archive(path)
    found = [name for name in members if name.endswith(".mlmodel")]
    if len(found) != 1:
        raise ModelRejected("the CoreML package does not hold exactly one model")
    root = found[0].rpartition("/")[0]
    prefix = f"{root}/" if root else ""
    beside = {name.removeprefix(prefix): data for name, data in members.items() if name.startswith(prefix) and name != found[0]}
    return Message(memoryview(members[found[0]])), Blobs(beside)


def _feature(message: Message) -> Feature:
    name, kind = message.text(1), message.message(3)
    if 5 in kind:
        return Feature(name, "float32", math.prod(kind.message(5).integers(1)) or 0)
    if 6 in kind:
        return Feature(name, "dict", 0)
    if 3 in kind:
        return Feature(name, "str", 1)
    return Feature(name, "int64" if 1 in kind else "float32", 1)


def _check_inputs(inputs: list[Feature]) -> None:
    odd = next((f for f in inputs if f.dtype not in ("float32", "int64") or not 0 < f.width <= 1_000_000), None)
    if odd is not None or not inputs:
        raise Unsupported("a CoreML model without numeric inputs of a known width")
