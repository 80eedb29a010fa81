"""Which format a model file is of, from its content. Blocks: call it in a thread."""

from __future__ import annotations

import zipfile
from pathlib import Path

from dimnode.domain.model import ModelFormat
from dimnode.errors import InvalidArgument, NotFound
from loaders.api import ModelRejected
from loaders.onnx_bytes import check_shape_of_file

HINT = "DIM takes ONNX models and PyTorch programs saved by torch.export.save (.pt2)."
MAX_ONNX = 1 << 31
"""protobuf's own bound."""


def recognise(path: Path) -> ModelFormat:
    """Raises `NotFound`, `InvalidArgument`."""
    try:
        if not path.is_file():
            raise NotFound("there is no file at the given place")
        if zipfile.is_zipfile(path):
            return _archive(path)
        if path.stat().st_size > MAX_ONNX:
            raise InvalidArgument("the file is too large for an ONNX model", hint=HINT)
        check_shape_of_file(path.read_bytes())
    except ModelRejected as e:
        raise InvalidArgument("the file is not a model of a known format", hint=HINT) from e
    except OSError as e:
        raise InvalidArgument("the file cannot be read") from e
    return "onnx"


def _archive(path: Path) -> ModelFormat:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError) as e:
        raise InvalidArgument("the file is not a whole archive", hint=HINT) from e
    if any(n.partition("/")[2] == "archive_format" for n in names):
        return "pt2"
    raise InvalidArgument("the archive is not a PyTorch program", hint=HINT)
