"""The head of an ``.mlxfn`` file, without MLX. Little-endian::

u64 length of the version | version ("0.32.4") | i32 functions | u8 shapeless | ...
"""

from __future__ import annotations

import re

from loaders.api import ModelRejected

HEAD_BYTES = 64
_VERSION = re.compile(rb"[0-9]{1,4}(\.[0-9]{1,6}){1,3}[0-9A-Za-z.+\-]{0,16}")


def is_mlxfn(head: bytes) -> bool:
    """Whether a file that begins so looks like an exported function."""
    size = int.from_bytes(head[:8], "little")
    return 3 <= size <= HEAD_BYTES - 16 and _VERSION.fullmatch(head[8 : 8 + size]) is not None and len(head) > 8 + size + 4


def check_head(head: bytes) -> None:
    """Raises `ModelRejected` unless it is an exported function of fixed shapes."""
    if not is_mlxfn(head):
        raise ModelRejected("not an MLX exported function")
    flag = head[8 + int.from_bytes(head[:8], "little") + 4]
    if flag != 0:
        raise ModelRejected(
            "it was exported with shapeless=True, which corrupts memory on other shapes; export several shapes with mlx.core.exporter"
        )
