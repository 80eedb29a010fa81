"""The daemon's small decisions: resources, crash history, casting, formats, protocol."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dimnode.daemon import model_formats
from dimnode.daemon.agent_process import ending
from dimnode.daemon.agent_protocol import (
    MAX_HEADER,
    PREFIX,
    Header,
    ProtocolError,
    TensorHead,
    pack,
    unpack_header,
    unpack_prefix,
    unpack_tensors,
)
from dimnode.daemon.casting import cast
from dimnode.daemon.model_health import ModelHealth
from dimnode.daemon.resources import Snapshot, capabilities, refusal, take_snapshot
from dimnode.daemon.settings import AgentSettings
from dimnode.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted

GIB = 1 << 30


def test_admission_looks_at_memory_and_disk_beside_a_reserve(tmp_path: Path) -> None:
    snapshot = Snapshot(memory_total=8 * GIB, memory_free=2 * GIB, cpu=0.1, disk_free=GIB)
    assert refusal(snapshot, memory=GIB, disk=0, min_memory=GIB, min_disk=0) is None
    assert "memory" in (refusal(snapshot, memory=GIB + 1, disk=0, min_memory=GIB, min_disk=0) or "")
    assert "disk" in (refusal(snapshot, memory=0, disk=GIB, min_memory=0, min_disk=1) or "")
    real = take_snapshot(tmp_path)
    assert 0 < real.memory_free <= real.memory_total
    assert capabilities(("onnx",)).memory == real.memory_total


def test_a_model_that_crashes_waits_longer_each_time_and_is_refused_for_a_while() -> None:
    health = ModelHealth(AgentSettings(backoff_first=1, backoff_most=3, max_crashes=3, refuse_seconds=60), remember=2)
    assert health.delay("m", 0) == 0
    health.crashed("m", "SIGSEGV", 10)
    assert health.delay("m", 10) == 1
    health.crashed("m", "SIGSEGV", 20)
    assert health.delay("m", 20.5) == 1.5
    health.crashed("m", "SIGSEGV", 30)
    with pytest.raises(ResourceExhausted, match=r"3 times in a row.*SIGSEGV") as refused:
        health.delay("m", 40)
    assert refused.value.retry_after == 50
    assert health.refused(40) == 1
    assert health.delay("m", 91) == 0
    health.crashed("m", "SIGSEGV", 91)
    with pytest.raises(ResourceExhausted):
        health.delay("m", 92)
    health.worked("m")
    assert health.delay("m", 92) == 0
    for name in "abc":
        health.crashed(name, "x", 0)
    assert health.delay("a", 0) == 0


def test_a_run_that_takes_out_of_all_proportion_counts_and_a_short_deadline_does_not() -> None:
    health = ModelHealth(AgentSettings(backoff_first=1, max_crashes=2, hang_seconds=100))
    for now in range(10):
        health.ran_out("m", 99, now)
    assert health.delay("m", 10) == 0
    health.worked("slow", 200)
    health.worked("slow", 5)
    for now in range(10):
        health.ran_out("slow", 599, now)
    assert health.delay("slow", 10) == 0, "it has taken 200 s before, and ended well"
    for model, seconds in (("m", 100), ("slow", 600)):
        health.ran_out(model, seconds, 10)
        assert health.delay(model, 10) == 1
        health.ran_out(model, seconds, 10)
        with pytest.raises(ResourceExhausted, match=f"no answer after {seconds} s"):
            health.delay(model, 11)
    health.worked("m")
    assert health.delay("m", 11) == 0


def test_a_load_that_fails_counts_for_what_was_claimed_and_a_death_for_every_manifest() -> None:
    health = ModelHealth(AgentSettings(backoff_first=1, max_crashes=2, refuse_seconds=60))
    for now in (0, 1):
        health.not_loaded("m", "theirs", "too little memory", now)
    with pytest.raises(ResourceExhausted, match=r"failed, crashed or hung 2 times in a row.*too little memory"):
        health.delay("m", 2, "theirs")
    assert (health.delay("m", 2, "mine"), health.delay("m", 2), health.refused(2)) == (0, 0, 1)
    health.accepted("m", "mine")
    health.worked("m")
    with pytest.raises(ResourceExhausted):
        health.delay("m", 2, "theirs")
    health.accepted("m", "theirs")
    assert health.delay("m", 2, "theirs") == 0
    health.crashed("m", "SIGSEGV", 2)
    assert (health.delay("m", 2, "theirs"), health.delay("m", 2, "mine")) == (1, 1)
    health.not_loaded("m", "mine", "x", 2)
    health.forget("m")
    assert health.delay("m", 2, "mine") == 0


def test_a_rejection_holds_for_what_was_claimed_and_for_a_while() -> None:
    health = ModelHealth(AgentSettings(refuse_seconds=60), remember=2)
    health.rejected("m", "golden pair 1", "it does not give its golden answer", 10)
    with pytest.raises(FailedPrecondition, match="golden answer"):
        health.check("m", "golden pair 1", 69)
    health.check("m", "golden pair 2", 69)
    health.check("m", "golden pair 1", 70)
    assert (health.refused(69), health.refused(70)) == (1, 0)
    health.accepted("m", "golden pair 1")
    health.check("m", "golden pair 1", 20)
    health.rejected("m", "1", "x", 10)
    health.crashed("m", "SIGSEGV", 10)
    health.forget("m")
    health.check("m", "1", 20)
    assert health.delay("m", 10) == 0
    for name in "abc":
        health.rejected(name, "", "x", 10)
    health.check("a", "", 10)


def test_a_type_that_is_none_is_the_manifests_fault() -> None:
    with pytest.raises(InvalidArgument, match="'float17' by the model's manifest"):
        cast(np.zeros(2), "float17", "x")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([1, 2], "float32"), ([1.0, 2.0], "int64"), ([True, False], "float32"), ([0, 1], "bool"), ([1.5], "float16"),
     ([np.nan, np.inf], "float32"), ([1, 255], "uint8"), (["a"], "str"), ([1 + 2j], "complex64"), ([3], "complex128")],
)  # fmt: skip
def test_conversions_that_keep_the_meaning_are_made(values: list, dtype: str) -> None:
    array = np.array(values, dtype=object if dtype == "str" else None)
    out = cast(array, dtype, "x")
    assert out.dtype == (object if dtype == "str" else np.dtype(dtype))
    np.testing.assert_array_equal(out, array.astype(out.dtype))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([1.5], "int64"), ([256], "uint8"), ([-1], "uint64"), ([2**63], "int64"), ([1e300], "float32"), ([2], "bool"), (["a"], "float32"),
     ([1], "str"), ([1j], "float64"), ([np.nan], "int32"), ([1e30], "int64")],
)  # fmt: skip
def test_conversions_that_do_not_are_refused(values: list, dtype: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^x "):
        cast(np.array(values), dtype, "x")


def _join(pieces: list) -> bytes:
    return b"".join(bytes(p) for p in pieces)


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.int64, np.bool_, np.uint8, np.float16, np.dtype(">f8")]), hnp.array_shapes(min_dims=0, min_side=0)
    )
)
def test_frames_carry_arrays_unchanged(array: np.ndarray) -> None:
    data = _join(pack(Header(op="run"), {"a": array, "t": np.array(["ä", ""], dtype=object), "u": np.array(["x"])}))
    header_size, payload_size = unpack_prefix(data[: PREFIX.size], 1 << 30)
    header = unpack_header(data[PREFIX.size : PREFIX.size + header_size])
    payload = bytearray(data[PREFIX.size + header_size :])
    assert len(payload) == payload_size
    out = unpack_tensors(header.tensors, payload)
    np.testing.assert_array_equal(out["a"], array)
    assert out["a"].shape == array.shape
    assert out["t"].tolist() == ["ä", ""]
    assert out["u"].tolist() == ["x"]


@given(st.binary(max_size=200))
def test_random_headers_are_refused_or_understood(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        unpack_header(data)


def test_frames_are_bounded_and_checked() -> None:
    with pytest.raises(ProtocolError):
        unpack_prefix(PREFIX.pack(MAX_HEADER + 1, 0), 10)
    with pytest.raises(ProtocolError):
        unpack_prefix(PREFIX.pack(1, 11), 10)
    for head, payload in [
        (TensorHead("a", "float32", (2,), 4), b"1234"),
        (TensorHead("a", "object", (1,), 8), bytes(8)),
        (TensorHead("a", "nonsense", (1,), 8), bytes(8)),
        (TensorHead("a", "float32", (-1,), 4), b"1234"),
        (TensorHead("a", "str", (1,), 4), b"nope"),
        (TensorHead("a", "float32", (1,), 4), b"12345678"),
    ]:
        with pytest.raises(ProtocolError):
            unpack_tensors([head], bytearray(payload))


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "without an answer"), (3, "exit code 3"), (-11, "SIGSEGV"), (-9, "memory"), (None, "connection"), (-99, "signal 99")],
)
def test_endings_in_words(code: int | None, words: str) -> None:
    assert words in ending(code)


def test_formats_are_told_from_content(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        model_formats.recognise(tmp_path / "none")
    path = tmp_path / "f"
    path.write_bytes(b"\x00junk")
    with pytest.raises(InvalidArgument, match="not a model"):
        model_formats.recognise(path)
    for name, kind in (("m/archive_format", "pt2"), ("m/other", None)):
        with zipfile.ZipFile(path, "w") as z:
            z.writestr(name, "pt2")
        if kind:
            assert model_formats.recognise(path) == kind
        else:
            with pytest.raises(InvalidArgument, match="archive"):
                model_formats.recognise(path)
