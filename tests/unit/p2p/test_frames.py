from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p import frames
from p2p.frames import Assembly, Frame, FrameReader, Kind, ProtocolViolation


@given(st.binary(max_size=100_000), st.lists(st.integers(1, 50_000), max_size=20))
def test_a_request_survives_any_cut_of_its_bytes(data: bytes, cuts: list[int]) -> None:
    wire = b"".join(frames.request_frames(7, "méthode", data, 1.5))
    reader = FrameReader()
    found: list[Frame] = []
    for size in [*cuts, len(wire)]:
        found += reader.feed(wire[:size])
        wire = wire[size:]
    begin = frames.decode_begin(found[0].payload)
    assembly = Assembly(begin.size, begin.first)
    for frame in found[1:]:
        assert (frame.kind, frame.id) == (Kind.DATA, 7)
        assembly.add(frame.payload)
    assert (begin.method, begin.timeout) == ("méthode", 1.5)
    assert assembly.complete
    assert assembly.data() == data


@given(st.binary(max_size=100_000))
def test_answers(data: bytes) -> None:
    first, *rest = FrameReader().feed(b"".join(frames.answer_frames(9, data)))
    assembly = Assembly(*frames.decode_answer(first.payload))
    for frame in rest:
        assembly.add(frame.payload)
    assert assembly.complete
    assert assembly.data() == data


@given(st.binary(max_size=200))
def test_random_bytes_are_frames_or_a_violation(data: bytes) -> None:
    try:
        for frame in FrameReader().feed(data):
            if frame.kind is Kind.BEGIN:
                frames.decode_begin(frame.payload)
    except ProtocolViolation:
        pass


def test_what_is_against_the_protocol() -> None:
    with pytest.raises(ProtocolViolation):
        list(FrameReader().feed(frames._HEADER.pack(1, 1, frames.MAX_PAYLOAD + 1)))
    with pytest.raises(ProtocolViolation):
        list(FrameReader().feed(frames._HEADER.pack(99, 1, 0)))
    for payload in (b"", bytes(9), frames._BEGIN.pack(1, 0, 0) + b"more", frames._BEGIN.pack(1, 9, 300) + bytes(300)):
        with pytest.raises(ProtocolViolation):
            frames.decode_begin(payload)
    for payload in (b"", b"\0\0\0\0x"):
        with pytest.raises(ProtocolViolation):
            frames.decode_answer(payload)
    with pytest.raises(ProtocolViolation):
        Assembly(3, b"ab").add(b"cd")
    with pytest.raises(ProtocolViolation):
        Assembly(3, b"ab").add(b"")


def test_faults() -> None:
    assert frames.decode_fault(frames.encode_fault("CODE", "why: é")) == ("CODE", "why: é")
    assert frames.decode_fault(b"") == ("INTERNAL", "")
    assert len(frames.encode_fault("CODE", "x" * 10_000)) == frames.MAX_FAULT


def test_a_method_name_is_short() -> None:
    with pytest.raises(ValueError, match="name"):
        list(frames.request_frames(1, "m" * 300, b"", 1))
