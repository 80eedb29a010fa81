"""Which format a model file is of, from its content. Blocks: call it in a thread."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from dimnode.domain.model import ModelFormat
from dimnode.errors import InvalidArgument, NotFound
from loaders.api import ModelRejected
from loaders.archive import opened
from loaders.mlx_bytes import HEAD_BYTES, is_mlxfn
from loaders.onnx_bytes import check_shape_of_file
from loaders.protobuf import top_fields

HINT = (
    "DIM takes ONNX (.onnx, or a folder with its data), PyTorch programs (.pt2), TorchScript, safetensors, MLX functions (.mlxfn), "
    "language models (a folder with config.json and tokenizer.json, or .gguf) and CoreML models (.mlpackage, .mlmodel)."
)
MAX_CONFIG = 1 << 20
PICKLED = "a pickled PyTorch file can run any code when it is opened and is not taken"
MAX_PROTOBUF = 1 << 31
"""protobuf's own bound."""
_COREML_KINDS = range(200, 4000)
"""Field numbers of the kinds of model in CoreML's Model message."""


def recognise(path: Path) -> ModelFormat:
    """Raises `NotFound`, `InvalidArgument`."""
    try:
        if not path.is_file():
            raise NotFound("there is no file at the given place")
        if zipfile.is_zipfile(path):
            return _archive(path)
        return _file(path)
    except ModelRejected as e:
        raise InvalidArgument("the file is not a model of a known format", hint=HINT) from e
    except OSError as e:
        raise InvalidArgument("the file cannot be read") from e


def _file(path: Path) -> ModelFormat:
    size = path.stat().st_size
    with path.open("rb") as f:
        head = f.read(HEAD_BYTES)
    if is_mlxfn(head):
        return "mlx"
    if head[:4] == b"GGUF":
        return "mlx-lm"
    if 2 <= int.from_bytes(head[:8], "little") <= size - 8 and head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise InvalidArgument(PICKLED, hint=HINT)
    if size > MAX_PROTOBUF:
        raise InvalidArgument("the file is too large for an ONNX or CoreML model", hint=HINT)
    data = path.read_bytes()
    if {1, 2} <= (found := top_fields(data)) and any(n in _COREML_KINDS for n in found):
        return "coreml"
    check_shape_of_file(data)
    return "onnx"


def _archive(path: Path) -> ModelFormat:
    try:
        with opened(path) as archive:
            names = [n for n in archive.namelist() if not n.endswith("/")]
            generates = "config.json" in names and _generates_text(archive)
    except ModelRejected as e:
        raise InvalidArgument("the file is not a whole archive", hint=HINT) from e
    within = {n.partition("/")[2] for n in names}
    if "archive_format" in within:
        return "pt2"
    if "constants.pkl" in within and any(n.startswith("code/") for n in within):
        return "torchscript"
    if "data.pkl" in within:
        raise InvalidArgument(PICKLED, hint=HINT)
    if any(n.endswith(".mlmodel") for n in names):
        return "coreml"
    if sum(n.endswith(".onnx") for n in names) == 1:
        return "onnx"
    if generates:
        return "mlx-lm"
    if "config.json" in names and "model.safetensors" in names:
        return "safetensors"
    raise InvalidArgument("the archive is not a model of a known format", hint=HINT)


def _generates_text(archive: zipfile.ZipFile) -> bool:
    """By what a published model's config says of itself: ``"architectures": ["LlamaForCausalLM"]``."""
    with archive.open("config.json") as f:
        data = f.read(MAX_CONFIG + 1)
    try:
        config: Any = json.loads(data) if len(data) <= MAX_CONFIG else None
    except (ValueError, RecursionError):
        return False
    named: Any = config.get("architectures") if isinstance(config, dict) else None
    return isinstance(named, list) and any(isinstance(n, str) and n.endswith("ForCausalLM") for n in named)
