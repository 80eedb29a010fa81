from __future__ import annotations

import json
import subprocess
import sys

import libipld
import pytest

from dimnode.domain.codec import encode
from dimnode.domain.tensors import DTYPES
from loaders.api import ModelRejected
from loaders.builtin_catalog import BUILTIN_SCHEMAS, descriptor, parse_descriptor
from loaders.builtin_loader import _WHERE


@pytest.mark.parametrize("name", BUILTIN_SCHEMAS)
def test_a_descriptor_is_canonical_and_reads_back(name: str) -> None:
    assert descriptor(name) == encode({"builtin": name})
    assert parse_descriptor(descriptor(name)) == name
    assert parse_descriptor(json.dumps({"builtin": name}).encode()) == name


def test_an_unknown_step_has_no_descriptor() -> None:
    with pytest.raises(KeyError):
        descriptor("dim/none@1")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xff",
        b"{",
        b"[1]",
        b"{" * 900,
        b"x" * 2000,
        libipld.encode_dag_cbor({"builtin": 7}),
        libipld.encode_dag_cbor({"builtin": "dim/boxes@1", "code": "import os"}),
        libipld.encode_dag_cbor(["dim/boxes@1"]),
        libipld.encode_dag_cbor({"builtin": "dim/boxes@2"}),
        libipld.encode_dag_cbor({"builtin": "../../etc/passwd"}),
    ],
)
def test_what_is_no_descriptor_is_refused(data: bytes) -> None:
    with pytest.raises(ModelRejected):
        parse_descriptor(data)


def test_every_step_has_a_schema_and_a_function() -> None:
    assert set(BUILTIN_SCHEMAS) == set(_WHERE)
    for schema in BUILTIN_SCHEMAS.values():
        assert {t.dtype for t in (*schema.inputs, *schema.outputs)} <= set(DTYPES)


def test_the_catalogue_needs_no_vision_library() -> None:
    code = "import sys, loaders.builtin_catalog; sys.exit(any(m in sys.modules for m in ('cv2', 'pyclipper', 'onnxruntime')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
