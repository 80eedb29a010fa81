"""What an author says of a model when it is added: the parts of a manifest that its file does not tell.

``dimnode model add FILE --manifest M.json``::

    {"id": "vad", "licence": "MIT", "batch_axis": 0,
     "inputs":  [{"name": "x", "dtype": "float32", "shape": ["N", 576]}],
     "outputs": [{"name": "y", "dtype": "float32", "shape": ["N", 1]}],
     "architecture": {"type": "mlp", ...},
     "golden": {"inputs": {"x": {"dtype", "shape", "data"}}, "outputs": {...}, "rtol": 1e-3, "atol": 1e-4},
     "needs": {"memory": 300000000, "gpu": false, "gpu_memory": 0}, "trial": true}

Every field may be left out; what a format cannot do without is asked for by its loader.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from dimnode.domain import tensors
from dimnode.domain.model import GoldenPair, Needs, TensorSpec
from dimnode.errors import FieldProblem, InvalidArgument

MAX_BYTES = 1 << 20
"""Of the form, as JSON."""
MAX_GOLDEN_BYTES = 64 << 10
"""Of all tensors of a golden pair: it travels with the manifest."""
MAX_TENSORS = 256


class ModelForm(msgspec.Struct, frozen=True, kw_only=True):
    id: str = ""
    licence: str = ""
    batch_axis: int | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    architecture: dict[str, Any] = {}
    golden: GoldenPair | None = None
    needs: Needs = Needs()
    trial: bool = True
    """False: it is loaded but not run before it is published, for models that take very long."""


def parse_model_form(text: str) -> ModelForm:
    """From JSON; empty text is an empty form. Raises `InvalidArgument` naming the field."""
    if len(text.encode()) > MAX_BYTES:
        _refuse("manifest", f"must not be larger than {MAX_BYTES} bytes")
    try:
        plain: Any = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        _refuse("manifest", "must be JSON")
    if not isinstance(plain, dict):
        _refuse("manifest", "must be a JSON object")
    given: dict[str, Any] = dict(plain)
    golden = given.pop("golden", None)
    extra = sorted(set(given) - set(ModelForm.__struct_fields__))
    if extra:
        _refuse(extra[0], "is not a known field")
    try:
        form = msgspec.convert(given, ModelForm)
    except msgspec.ValidationError as e:
        _refuse(_where(str(e)), f"is not right: {str(e).partition(' - at ')[0]}")
    _check(form)
    return msgspec.structs.replace(form, golden=_golden(golden)) if golden is not None else form


def _check(form: ModelForm) -> None:
    if form.batch_axis not in (None, 0):
        _refuse("batch_axis", "must be 0 or left out")
    for field, specs in (("inputs", form.inputs), ("outputs", form.outputs)):
        if len(specs) > MAX_TENSORS or len({t.name for t in specs}) != len(specs):
            _refuse(field, f"must be at most {MAX_TENSORS} tensors of different names")
        for number, t in enumerate(specs):
            _check_spec(f"{field}[{number}]", t)
    if form.needs.memory < 0:
        _refuse("needs.memory", "must be 0 or more")
    if form.needs.gpu_memory < 0:
        _refuse("needs.gpu_memory", "must be 0 or more")


def _check_spec(field: str, t: TensorSpec) -> None:
    if not 0 < len(t.name) <= 256:
        _refuse(f"{field}.name", "must be 1 to 256 characters")
    if t.dtype not in tensors.DTYPES:
        _refuse(f"{field}.dtype", f"must be one of {', '.join(tensors.DTYPES)}")
    for n in t.shape:
        if (isinstance(n, int) and not 0 <= n < 1 << 32) or (isinstance(n, str) and not 0 < len(n) <= 64):
            _refuse(f"{field}.shape", "must be sizes, names of symbolic axes, or null")
    fixed = math.prod(n for n in t.shape if isinstance(n, int))
    if len(t.shape) > tensors.MAX_RANK or fixed > tensors.MAX_ELEMENTS:
        _refuse(f"{field}.shape", "is too large")


def _golden(plain: Any) -> GoldenPair:
    if not isinstance(plain, dict) or not set(plain) <= {"inputs", "outputs", "rtol", "atol"} or "inputs" not in plain:
        _refuse("golden", 'must be {"inputs", "outputs", "rtol", "atol"}; only inputs must be there')
    known: dict[str, Any] = plain
    pair = GoldenPair(
        inputs=_tensors(known["inputs"], "golden.inputs"),
        outputs=_tensors(known.get("outputs", {}), "golden.outputs"),
        rtol=_tolerance(known.get("rtol", 1e-3), "golden.rtol"),
        atol=_tolerance(known.get("atol", 1e-4), "golden.atol"),
    )
    size = sum(t.nbytes for part in (pair.inputs, pair.outputs) for t in part.values())
    if size > MAX_GOLDEN_BYTES:
        _refuse("golden", f"must not hold more than {MAX_GOLDEN_BYTES} bytes of tensors, has {size}")
    return pair


def _tensors(plain: Any, field: str) -> dict[str, tensors.TensorValue]:
    if not isinstance(plain, Mapping) or len(plain) > MAX_TENSORS:  # pyright: ignore[reportUnknownArgumentType]
        _refuse(field, f"must be at most {MAX_TENSORS} tensors by name")
    known: Mapping[str, Any] = plain
    out = {str(name): tensors.from_json(value, f"{field}.{name}") for name, value in known.items()}
    by_cid = next((name for name, value in out.items() if value.raw is None), None)
    if by_cid is not None:
        _refuse(f"{field}.{by_cid}", "must have data: a golden pair travels inline")
    return out


def _tolerance(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e6:
        _refuse(field, "must be a number, 0 or more")
    return float(value)


def _where(message: str) -> str:
    """msgspec says ``... - at `$.inputs[0].dtype```."""
    _, _, place = message.partition(" - at `$.")
    return place.rstrip("`") or "manifest"


def _refuse(field: str, rule: str) -> NoReturn:
    raise InvalidArgument(f"{field} {rule}", fields=(FieldProblem(field, rule),), hint="docs/models.md shows the form.")
