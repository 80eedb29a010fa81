"""What an author says of a model, from files: a form (JSON) and a golden pair (.npz)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dimnode.cli.common import UsageProblem
from dimnode.errors import InvalidArgument


def read_form(form: Path | None, golden: Path | None, trial: bool = True) -> str:
    """JSON for the node; empty if nothing is said. Raises `UsageProblem`."""
    plain = _json(form) if form is not None else {}
    if not trial:
        plain["trial"] = False
    if golden is not None:
        plain["golden"] = {**_golden(golden), **{k: v for k, v in plain.get("golden", {}).items() if k in ("rtol", "atol")}}
    return json.dumps(plain) if plain else ""


def form_id(text: str) -> str:
    """The name in a form that `read_form` made; whether it is one is for the node to say."""
    found = json.loads(text).get("id", "") if text else ""
    return found if isinstance(found, str) else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        plain: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UsageProblem(InvalidArgument(f"the form {path.name} is not JSON: {e}")) from e
    if not isinstance(plain, dict) or not isinstance(plain.get("golden", {}), dict):
        raise UsageProblem(InvalidArgument(f"the form {path.name} must be a JSON object, its golden pair too"))
    return plain


def _golden(path: Path) -> dict[str, Any]:
    """``in.NAME`` and ``out.NAME`` arrays as tensors in their outside form."""
    import numpy as np

    from dimnode.domain.tensors import from_numpy, to_json

    parts: dict[str, dict[str, Any]] = {"in": {}, "out": {}}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                kind, _, name = key.partition(".")
                if kind not in parts or not name:
                    raise UsageProblem(InvalidArgument(f"{key!r} in {path.name} is neither in.NAME nor out.NAME"))
                parts[kind][name] = to_json(from_numpy(arrays[key]))
    except (OSError, ValueError, EOFError) as e:
        raise UsageProblem(InvalidArgument(f"{path.name} is not an .npz file of plain arrays")) from e
    return {"inputs": parts["in"], "outputs": parts["out"]}
