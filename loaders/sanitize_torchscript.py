"""Makes a TorchScript archive safe to hand to `torch.jit.load`, or refuses it. Written without torch.

A TorchScript file holds code in a subset of Python that torch compiles, and pickles that torch reads with a reader of
its own. That code runs with all of torch's operators, of which some reach files, other processes or raw memory. So:

- members: code, the two pickles, their tensors, a few markers. Debug information and extra files are dropped, anything
  else is refused.
- code is parsed: operators by their namespace, some by name; no method that torch would run while it loads.
- pickles are scanned: only classes that the code defines, tensors and lists; no class that is native code.

`loaders.torchscript_loader` checks the compiled graphs once more, before anything runs.
"""

from __future__ import annotations

import ast
import io
import pickletools
import re
import zipfile
from dataclasses import dataclass

from loaders.api import ModelRejected
from loaders.archive import opened, read_member


@dataclass(frozen=True, slots=True)
class TorchScriptLimits:
    max_bytes: int = 8 << 30
    """All members together, unpacked."""
    max_code_bytes: int = 32 << 20
    max_members: int = 100_000


DEFAULT_LIMITS = TorchScriptLimits()
DENIED = frozenset((
    "from_file", "save", "load", "set_", "set_data", "resize", "resize_", "resize_as", "resize_as_", "resize_as_sparse_", "sparse_resize_",
    "sparse_resize_and_clear_", "record_stream", "pin_memory", "wait", "fork", "awaitable", "awaitable_wait", "awaitable_nowait", "rpc_async",
    "rpc_sync", "rpc_remote", "__setstate__", "__getstate__", "sparse_coo_tensor", "sparse_csr_tensor", "lu_unpack",
))  # fmt: skip
"""Operators and methods that reach files, threads, other machines or raw memory, whatever they are called on."""
PRIVATE = frozenset((
    "_convolution", "_pack_padded_sequence", "_pad_packed_sequence", "_set_item", "_softmax", "_log_softmax", "_weight_norm", "_shape_as_tensor",
    "_transformer_encoder_layer_fwd", "_native_multi_head_attention", "_unsafe_view", "_cast_Float", "_cast_Long", "_cast_Int", "_cast_Half",
    "_dim_arange", "_list_to_tensor", "_infer_size", "_size_if_not_equal", "_stack", "_cat", "_unique2", "_trilinear", "_to_copy",
))  # fmt: skip
"""Operators of torch's own use that compiled models contain."""
PRIM = frozenset((
    "Constant", "GetAttr", "SetAttr", "CallMethod", "CallFunction", "If", "Loop", "ListConstruct", "ListUnpack", "TupleConstruct", "TupleUnpack",
    "TupleIndex", "TupleSlice", "DictConstruct", "NumToTensor", "RaiseException", "Uninitialized", "unchecked_cast", "unchecked_unwrap_optional",
    "isinstance", "dtype", "device", "layout", "is_cuda", "is_cpu", "is_mps", "is_quantized", "is_sparse", "is_nested", "requires_grad", "min",
    "max", "abs", "data", "Print", "CreateObject", "EnumValue", "EnumName", "ConstantChunk", "tolist", "rangelist", "StringIndex", "itemsize",
    "TypeCheck", "type", "ModuleContainerIndex", "index", "name", "shape", "grad", "annotate", "Enter", "Exit",
))  # fmt: skip
_MEMBER = re.compile(
    r"data\.pkl|constants\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
    r"|(?:data|constants)/[0-9]{1,9}|code/[A-Za-z0-9_/.]{1,400}\.py",
    re.ASCII,
)
_DROPPED = re.compile(r".*\.debug_pkl|extra/.*|attributes\.pkl|\.DS_Store", re.ASCII)
_ROOT = re.compile(r"[A-Za-z0-9_@+\-][A-Za-z0-9_.@+ \-]{0,255}", re.ASCII)
_CLASS = re.compile(r"__torch__(?:\.[A-Za-z_][A-Za-z0-9_]*)+", re.ASCII)
_STORAGES = frozenset(f"torch {n}Storage" for n in (
    "Float", "Double", "Half", "BFloat16", "Int", "Long", "Short", "Char", "Byte", "Bool", "ComplexFloat", "ComplexDouble",
))  # fmt: skip
_GLOBALS = _STORAGES | {
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch.jit._pickle build_intlist",
    "torch.jit._pickle build_doublelist", "torch.jit._pickle build_boollist", "torch.jit._pickle build_tensorlist", "torch.jit._pickle restore_type_tag",
    "torch.jit._pickle build_tensor_from_id", "torch.jit._pickle build_stringlist", "torch.jit._pickle build_listlist",
}  # fmt: skip


def _refuse(what: str) -> ModelRejected:
    return ModelRejected(f"the TorchScript file was refused: {what}")


def sanitize(data: bytes, limits: TorchScriptLimits = DEFAULT_LIMITS) -> io.BytesIO:
    """A new archive with only what was recognised as harmless. Raises `ModelRejected`."""
    with opened(io.BytesIO(data)) as source:
        return _rewrite(source, limits)


def _rewrite(source: zipfile.ZipFile, limits: TorchScriptLimits) -> io.BytesIO:
    members = source.infolist()
    if len(members) > limits.max_members:
        raise _refuse("too many members")
    root = members[0].filename.partition("/")[0] if members else ""
    if not _ROOT.fullmatch(root):
        raise _refuse("a folder has an odd name")
    out, left, seen = io.BytesIO(), limits.max_bytes, set[str]()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for info in members:
            top, _, name = info.filename.partition("/")
            if top != root or name in seen:
                raise _refuse("it has more than one top folder, or a member twice")
            seen.add(name)
            if _DROPPED.fullmatch(name) or info.is_dir():
                continue
            content = _member(source, info, name, min(left, limits.max_code_bytes) if name.endswith((".py", ".pkl")) else left)
            left -= len(content)
            _add(target, f"model/{name}", content)
    if not {"data.pkl", "constants.pkl"} <= seen:
        raise _refuse("it is not a whole TorchScript file")
    out.seek(0)
    return out


def _add(target: zipfile.ZipFile, name: str, content: bytes) -> None:
    """torch maps tensors from the file, so they begin at multiples of 64 bytes."""
    info = zipfile.ZipInfo(name)
    at = target.fp.tell() + 30 + len(name.encode())  # pyright: ignore[reportOptionalMemberAccess]
    pad = (-at - 4) % 64
    info.extra = b"FB" + pad.to_bytes(2, "little") + b"Z" * pad
    target.writestr(info, content)


def _member(source: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, most: int) -> bytes:
    if not _MEMBER.fullmatch(name) or ".." in name:
        raise _refuse("it holds a member that models do not need")
    content = read_member(source, info, most)
    if name.endswith(".py"):
        check_code(content)
    elif name.endswith(".pkl"):
        check_pickle(content)
    return content


# --- code ----------------------------------------------------------------------------------------


def check_code(source: bytes) -> None:
    """Raises `ModelRejected` for operators that are not run, and for what would run while it is loaded."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise _refuse("its code cannot be parsed") from e
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in DENIED:
            raise _refuse(f"it defines {node.name}, which would run while it is loaded")
        if isinstance(node, ast.Attribute):
            _check_attribute(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in DENIED:
            raise _refuse(f"its code names {node.value}")
        elif isinstance(node, ast.Name) and node.id in ("fork", "awaitable", "rpc_async", "rpc_sync", "rpc_remote"):
            raise _refuse(f"it would start threads or reach other machines ({node.id})")


def _check_attribute(node: ast.Attribute) -> None:
    """``torch.NAME``, ``ops.NAMESPACE.NAME``, or an attribute of a value."""
    if node.attr in DENIED:
        raise _refuse(f"operator {node.attr} is not allowed")
    match node.value:
        case ast.Name(id="torch"):
            check_operator("aten", node.attr)
        case ast.Attribute(value=ast.Name(id="ops"), attr=namespace):
            check_operator(namespace, node.attr)
        case ast.Name(id="ops"):
            if node.attr not in ("prim", "aten"):
                raise _refuse(f"operators of {node.attr[:64]} are not allowed")
        case ast.Attribute(value=ast.Name(id="__torch__"), attr="torch") if node.attr == "classes":
            raise _refuse("it uses classes of native code")
        case _:
            return


def check_operator(namespace: str, name: str) -> None:
    """Allowed by namespace, denied by name. Raises `ModelRejected`."""
    if namespace == "prim":
        allowed = name in PRIM
    else:
        special = name.startswith("__") and name not in ("__setstate__", "__getstate__")
        allowed = namespace == "aten" and name not in DENIED and (not name.startswith("_") or special or name in PRIVATE)
    if not allowed:
        raise _refuse(f"operator {namespace[:64]}::{name[:64]} is not allowed")


# --- pickles -------------------------------------------------------------------------------------


def check_pickle(data: bytes) -> None:
    """torch's reader runs no foreign code; still nothing but tensors, lists and the file's own classes gets to it."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
                raise _refuse("a pickle in it makes objects in an unusual way")
            if opcode.name == "GLOBAL":
                _check_global(str(argument))
    except (ValueError, UnicodeDecodeError, IndexError, OverflowError) as e:
        raise _refuse("a pickle in it is malformed") from e


def _check_global(name: str) -> None:
    qualified = name.replace(" ", ".")
    own = _CLASS.fullmatch(qualified) is not None and not qualified.startswith("__torch__.torch.classes")
    if not own and name not in _GLOBALS:
        raise _refuse(f"a pickle in it names {qualified[:64] if qualified.isascii() and qualified.isprintable() else 'something odd'}")
