"""Makes a ``.pt2`` archive safe to hand to `torch.export.load`, or refuses it.

torch's loader trusts its file: it unpickles sample inputs and tensors flagged so, evaluates symbolic
expressions, imports modules that a tree spec names, and pastes node names, argument names and guards into
Python source that it then executes. So nothing is passed on that was not recognised:

- members: weights, constants, one program, their two indexes and a few fixed markers. Sample inputs and
  extra files are emptied or dropped; anything else (AOTInductor code, pickles, other folders) is refused.
- JSON is parsed, checked value by value and written anew, so that torch reads what was checked.
  Metadata, which programs do not need to run, is dropped.
- operators: ``torch.ops.aten`` without those that touch files or raw memory, and integer arithmetic.
- strings: identifiers where torch makes code of them, plain names elsewhere.

Written without torch, so that it can be tested and run anywhere.
"""

from __future__ import annotations

import ast
import io
import json
import keyword
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loaders.api import ModelRejected
from loaders.archive import opened, read_member


@dataclass(frozen=True, slots=True)
class Pt2Limits:
    """Bounds on what an archive may unpack to."""

    max_bytes: int = 8 << 30
    """All members together, unpacked."""
    max_json_bytes: int = 64 << 20
    max_members: int = 100_000


DEFAULT_LIMITS = Pt2Limits()
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9_.@+:\-]{0,512}", re.ASCII)
_EXPRESSION = re.compile(r"[A-Za-z0-9_(), ='\-]{1,2000}", re.ASCII)
_SYMBOL = re.compile(r"[a-z]{1,8}[0-9]{1,6}", re.ASCII)
_ATEN = re.compile(r"torch\.ops\.aten\.([a-z_][a-z0-9_]*)\.([A-Za-z][A-Za-z0-9_]*)", re.ASCII)
_PAYLOAD = re.compile(r"(?:weight|tensor)_[0-9]{1,9}", re.ASCII)

_OPERATORS = frozenset(
    f"_operator.{n}" for n in ("add", "sub", "mul", "floordiv", "mod", "neg", "pos", "pow", "truediv", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_")
) | frozenset(("torch.sym_max", "torch.sym_min", "torch.sym_not", "torch.sym_int", "torch.sym_float", "math.ceil", "math.floor", "math.trunc"))  # fmt: skip
# files, streams, raw storage, sizes that are not checked against storage
_DENIED_OPS = frozenset(("from_file", "save", "record_stream", "set", "set_", "set_data", "resize", "resize_", "resize_as", "resize_as_"))
# operators with a leading underscore skip checks more often than not: only those that exports contain
_PRIVATE_OPS = frozenset((
    "_softmax", "_log_softmax", "_to_copy", "_unsafe_view", "_convolution", "_weight_norm", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_scaled_dot_product_flash_attention_for_cpu",
    "_assert_tensor_metadata", "_assert_scalar", "_cdist_forward", "_fft_r2c", "_fft_c2r", "_fft_c2c", "_trilinear", "_local_scalar_dense",
))  # fmt: skip
_FUNCTIONS = frozenset((
    "Add", "Mul", "Pow", "Mod", "Max", "Min", "Integer", "FloorDiv", "CeilDiv", "PythonMod", "CleanDiv", "PowByNatural", "Symbol",
    "Eq", "Ne", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "And", "Or", "Not",
))  # fmt: skip
_ASSUMPTIONS = frozenset(("positive", "integer", "nonnegative", "real"))
_REFUSED_KEYS = frozenset(("as_custom_obj", "custom_obj", "as_graph", "as_operator", "as_opaque_obj"))
_EMPTY_KEYS = frozenset(("custom_obj_values", "guards_code", "treespec_namedtuple_fields", "opaque_obj_values"))
_TREE_TYPES = frozenset((None, "builtins.tuple", "builtins.list", "builtins.dict"))
_MARKERS = {
    "archive_format": re.compile(rb"pt2"),
    "archive_version": re.compile(rb"[0-9]{1,4}"),
    "byteorder": re.compile(rb"little"),
    ".data/version": re.compile(rb"[0-9]{1,4}\n?"),
    ".data/serialization_id": re.compile(rb"[0-9]{1,64}"),
}
MAX_DEPTH = 64
MAX_EXPONENT = 16


def _refuse(what: str) -> ModelRejected:
    return ModelRejected(f"the .pt2 file was refused: {what}")


# --- the archive ---------------------------------------------------------------------------------


def sanitize(data: bytes, limits: Pt2Limits = DEFAULT_LIMITS) -> io.BytesIO:
    """A new archive with only what was recognised as harmless. Raises `ModelRejected`."""
    with opened(io.BytesIO(data)) as source:
        return _rewrite(source, limits)


def _rewrite(source: zipfile.ZipFile, limits: Pt2Limits) -> io.BytesIO:
    members = source.infolist()
    if len(members) > limits.max_members:
        raise _refuse("too many members")
    out, total, seen = io.BytesIO(), 0, set[str]()
    root = members[0].filename.partition("/")[0] if members else ""
    programs = 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for info in members:
            top, _, name = info.filename.partition("/")
            if top != root or not _PLAIN.fullmatch(root) or root.strip(".") == "":
                raise _refuse("more than one top folder, or a folder with an odd name")
            if name in seen:
                raise _refuse("a member occurs twice")
            seen.add(name)
            content = _member(source, info, name, limits, limits.max_bytes - total)
            if content is None:
                continue
            total += len(content)
            programs += name.startswith("models/")
            target.writestr(zipfile.ZipInfo(f"{root}/{name}"), content)
    if programs != 1:
        raise _refuse("it must hold exactly one program")
    out.seek(0)
    return out


def _member(source: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, limits: Pt2Limits, left: int) -> bytes | None:
    """What the new archive holds under this name; None to leave it out."""
    folder, _, base = name.rpartition("/")
    if folder == "data/sample_inputs" and re.fullmatch(r"[\w\-]{1,128}\.pt", base, re.ASCII):
        return b""
    if name.startswith("extra/"):
        return None
    if name in _MARKERS:
        content = read_member(source, info, min(left, 128))
        if not _MARKERS[name].fullmatch(content):
            raise _refuse("an archive marker has an odd value")
        return content
    if folder in ("data/weights", "data/constants") and _PAYLOAD.fullmatch(base):
        return read_member(source, info, left)
    if folder in ("data/weights", "data/constants") and re.fullmatch(r"[\w\-]{1,128}_config\.json", base, re.ASCII):
        return _json(read_member(source, info, min(left, limits.max_json_bytes)), _check_payloads)
    if folder == "models" and re.fullmatch(r"[\w\-]{1,128}\.json", base, re.ASCII):
        return _json(read_member(source, info, min(left, limits.max_json_bytes)), _check_program)
    raise _refuse("it holds a member that programs do not need (compiled code and pickles are not run)")


def _json(raw: bytes, check: Callable[[dict[str, Any]], None]) -> bytes:
    try:
        document: Any = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise _refuse("a part is not JSON") from e
    if not isinstance(document, dict):
        raise _refuse("a part is not a JSON object")
    check(document)
    return json.dumps(document).encode()


# --- the JSON documents --------------------------------------------------------------------------


def _check_payloads(document: dict[str, Any]) -> None:
    entries = document.get("config")
    if not isinstance(entries, dict):
        raise _refuse("an index of weights is malformed")
    for entry in entries.values():
        path = entry.get("path_name") if isinstance(entry, dict) else None
        if not isinstance(path, str) or not _PAYLOAD.fullmatch(path):
            raise _refuse("an index names a payload that is not a plain tensor")
    _walk(document, "", 0)


def _check_program(document: dict[str, Any]) -> None:
    _drop_metadata(document, 0)
    _walk(document, "", 0)


def _drop_metadata(value: Any, depth: int) -> None:
    """Stack traces and the like: not needed to run, and torch interprets some of them."""
    if depth > MAX_DEPTH:
        raise _refuse("it nests too deeply")
    if isinstance(value, dict):
        if "metadata" in value:
            value["metadata"] = {}
        for v in value.values():
            _drop_metadata(v, depth + 1)
    elif isinstance(value, list):
        for v in value:
            _drop_metadata(v, depth + 1)


def _walk(value: Any, key: str, depth: int) -> None:
    """Every value below ``key``; keys are checked like strings."""
    if depth > MAX_DEPTH:
        raise _refuse("it nests too deeply")
    if key in _REFUSED_KEYS:
        raise _refuse(f"{key[3:].replace('_', ' ')} arguments are not run")
    if key in _EMPTY_KEYS and value not in ([], {}, None):
        raise _refuse(f"{key} is not empty")
    if key == "use_pickle" and value is not False:
        raise _refuse("a tensor is pickled")
    if isinstance(value, dict):
        for k, v in value.items():
            if not _PLAIN.fullmatch(k):
                raise _refuse("a name has odd characters")
            _walk(v, k, depth + 1)
    elif isinstance(value, list):
        for v in value:
            _walk(v, key, depth + 1)
    elif isinstance(value, str):
        _check_string(key, value)
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        raise _refuse("a number is out of range")


def _check_string(key: str, value: str) -> None:
    """One string by the role that its key gives it."""
    if key == "expr_str":
        check_expression(value)
    elif key == "target":
        check_target(value)
    elif key in ("in_spec", "out_spec"):
        _check_tree(value)
    elif key in ("name", "as_name", "forward_arg_names"):
        # torch pastes these into source
        if not _IDENTIFIER.fullmatch(value) or keyword.iskeyword(value):
            raise _refuse("a value has a name that is not an identifier")
    elif key in ("as_string", "as_strings"):
        if len(value) > 1000:
            raise _refuse("a string argument is too long")
    elif key == "type":
        if value != "cpu":
            raise _refuse(f"it needs a device of type {value[:16]!r}; export it on the CPU" if _PLAIN.fullmatch(value) else "odd device")
    elif not _PLAIN.fullmatch(value):
        raise _refuse("a name has odd characters")


def check_target(target: str) -> None:
    """Raises `ModelRejected` for an operator that is not run."""
    if target in _OPERATORS:
        return
    match = _ATEN.fullmatch(target)
    if match is None:
        shown = target if _PLAIN.fullmatch(target) else "with an odd name"
        raise _refuse(f"operator {shown} is outside torch.ops.aten")
    op = match.group(1)
    if op in _DENIED_OPS or (op.startswith("_") and op not in _PRIVATE_OPS):
        raise _refuse(f"operator aten.{op} is not allowed")


def check_expression(text: str) -> None:
    """A symbolic size: sums, products and the like of named symbols. torch evaluates it as Python."""
    if not _EXPRESSION.fullmatch(text):
        raise _refuse("a symbolic expression has odd characters or is too long")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, RecursionError, MemoryError, ValueError) as e:
        raise _refuse("a symbolic expression cannot be parsed") from e
    _expression(tree.body, 0)


def _expression(node: ast.expr, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _refuse("a symbolic expression nests too deeply")
    match node:
        case ast.Constant(value=bool()):
            raise _refuse("a symbolic expression is not arithmetic")
        case ast.Constant(value=int(n)) if abs(n) < 1 << 63:
            return
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _expression(operand, depth + 1)
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=keywords):
            if not _SYMBOL.fullmatch(name) or any(k.arg not in _ASSUMPTIONS or not _is_true(k.value) for k in keywords):
                raise _refuse("a symbol is malformed")
        case ast.Call(func=ast.Name(id=function), args=args, keywords=[]) if function in _FUNCTIONS - {"Symbol"} and args:
            if function in ("Pow", "PowByNatural"):
                _exponent(args)
            for arg in args:
                _expression(arg, depth + 1)
        case ast.Name(id=name) if _SYMBOL.fullmatch(name):
            return
        case _:
            raise _refuse("a symbolic expression is not arithmetic")


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _exponent(args: list[ast.expr]) -> None:
    """Powers are only of small constants, so that evaluating one cannot take for ever."""
    exponent = args[1] if len(args) == 2 else None
    if isinstance(exponent, ast.Call) and isinstance(exponent.func, ast.Name) and exponent.func.id == "Integer" and len(exponent.args) == 1:
        exponent = exponent.args[0]
    if isinstance(exponent, ast.UnaryOp):
        exponent = exponent.operand
    if not isinstance(exponent, ast.Constant) or not isinstance(exponent.value, int) or exponent.value > MAX_EXPONENT:
        raise _refuse("a symbolic power has no small constant exponent")


# --- tree specs ----------------------------------------------------------------------------------


def _check_tree(text: str) -> None:
    """How arguments nest: tuples, lists and dicts only; torch imports what other types name."""
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise _refuse("a tree spec is not JSON") from e
    if not isinstance(document, list) or len(document) != 2 or document[0] != 1:
        raise _refuse("a tree spec is of an unknown version")
    _tree(document[1], 0)


def _tree(node: Any, depth: int) -> None:
    if depth > MAX_DEPTH or not isinstance(node, dict) or set(node) != {"type", "context", "children_spec"}:
        raise _refuse("a tree spec is malformed")
    if node["type"] not in _TREE_TYPES or not isinstance(node["children_spec"], list):
        raise _refuse("its inputs or outputs are of a type other than tuple, list or dict")
    _tree_context(node["context"])
    for child in node["children_spec"]:
        _tree(child, depth + 1)


def _tree_context(context: Any) -> None:
    if context is None:
        return
    try:
        keys: Any = json.loads(context) if isinstance(context, str) else 0
    except (ValueError, RecursionError) as e:
        raise _refuse("a tree spec is malformed") from e
    if keys is None:
        return
    if not isinstance(keys, list) or not all(isinstance(k, str) and _IDENTIFIER.fullmatch(k) and not keyword.iskeyword(k) for k in keys):
        raise _refuse("the keys of its inputs or outputs are not identifiers")
