"""Files that the verbs read and write: job forms, data, results."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dimnode.errors import InvalidArgument

ENDINGS = (".npz", ".json")


def read_json(path: str) -> dict[str, Any]:
    """A JSON object from a file, or from stdin for ``-``. Raises `InvalidArgument`."""
    name = "stdin" if path == "-" else Path(path).name
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        document = json.loads(text)
    except FileNotFoundError:
        raise InvalidArgument(f"{name} does not exist") from None
    except (OSError, UnicodeDecodeError, RecursionError) as e:
        raise InvalidArgument(f"{name} cannot be read: {type(e).__name__}") from e
    except ValueError as e:
        raise InvalidArgument(f"{name} is not JSON: {e}") from e
    if not isinstance(document, dict):
        raise InvalidArgument(f"{name} must hold a JSON object")
    return document


def read_form(spec: str, data: Path | None) -> dict[str, Any]:
    """The job form; with ``data`` its tensors become ``client_data`` (`TensorValue`)."""
    form = read_json(spec)
    if data is None:
        return form
    if "client_data" in form or "clientData" in form:
        raise InvalidArgument("the job form has client_data already", hint="Leave it out of the form, or leave out --data.")
    return {**form, "client_data": read_data(data)}


def read_data(path: Path) -> dict[str, Any]:
    """Named tensors of an ``.npz`` or ``.json`` file. Raises `InvalidArgument`."""
    from dimnode.domain.tensors import from_json

    if path.suffix not in ENDINGS:
        raise InvalidArgument(f"{path.name} must end in .npz or .json")
    if path.suffix == ".npz":
        return _read_npz(path)
    document = read_json(str(path))
    return {name: from_json(value, f"client_data.{name}") for name, value in document.items()}


def _read_npz(path: Path) -> dict[str, Any]:
    import zipfile

    import numpy as np

    from dimnode.domain.tensors import from_numpy

    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: from_numpy(archive[name]) for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as e:
        raise InvalidArgument(f"{path.name} is not an .npz file of plain arrays: {e}") from e


def with_tensors(document: Mapping[str, Any]) -> dict[str, Any]:
    """A result whose tensors are in their outside form and whose receipts are text."""
    from dimnode.cli.common import plain
    from dimnode.domain.tensors import TensorValue

    outputs = {name: plain(value) if isinstance(value, TensorValue) else _outside(value) for name, value in document["outputs"].items()}
    tasks = [{k: v.hex() if isinstance(v, bytes) else v for k, v in task.items()} for task in document.get("tasks", ())]
    return {**document, "outputs": outputs, "tasks": tasks}


def _outside(value: Any) -> Any:
    from dimnode.domain.tensors import from_numpy, to_json

    return to_json(from_numpy(value)) if hasattr(value, "dtype") else value


def check_out(path: Path | None) -> None:
    if path is not None and path.suffix not in ENDINGS:
        raise InvalidArgument(f"{path.name} must end in .npz or .json")


def write_outputs(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Write the output arrays of a result; returns them."""
    import numpy as np

    from dimnode.domain.tensors import from_numpy, to_json

    arrays = dict(document["outputs"])
    if path.suffix == ".npz":
        np.savez(path, **{name: a.astype(np.str_) if a.dtype.kind == "O" else a for name, a in arrays.items()})
    else:
        path.write_text(json.dumps({name: to_json(from_numpy(a)) for name, a in arrays.items()}), encoding="utf-8")
    return arrays
