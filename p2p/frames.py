"""Frames of the request protocol, without I/O.

A stream carries requests in one direction and their answers in the other. Big messages are cut, so that
small ones need not wait behind them. A frame is ``kind (1), request id (8), length (4)``, big-endian, then
``length`` bytes:

- BEGIN: milliseconds to the deadline (4), size of the request (4), length of the method's name (2), the
  name, the first bytes of the request; more come as DATA;
- ANSWER: size of the answer (4), its first bytes; more come as DATA;
- FAULT: code, a zero byte, message; CANCEL: nothing, the asker lost interest.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = struct.Struct(">BQI")
_BEGIN = struct.Struct(">IIH")
_ANSWER = struct.Struct(">I")
CHUNK = 32 * 1024
MAX_METHOD = 256
MAX_FAULT = 2048
MAX_PAYLOAD = CHUNK + _BEGIN.size + MAX_METHOD
MAX_DEADLINE_MS = 0xFFFF_FFFF


class Kind(enum.IntEnum):
    BEGIN = 1
    DATA = 2
    ANSWER = 3
    FAULT = 4
    CANCEL = 5


class ProtocolViolation(Exception):
    """The other side sent what the protocol does not allow."""


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Kind
    id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Begin:
    method: str
    timeout: float
    """Seconds the asker waits."""
    size: int
    first: bytes


def encode(kind: Kind, id: int, payload: bytes = b"") -> bytes:
    return _HEADER.pack(kind, id, len(payload)) + payload


def request_frames(id: int, method: str, data: bytes, timeout: float) -> Iterator[bytes]:
    """A request, frame by frame. ``ValueError`` if the method's name is too long."""
    name = method.encode()
    if len(name) > MAX_METHOD:
        raise ValueError(f"a method's name has at most {MAX_METHOD} bytes")
    milliseconds = max(1, min(int(timeout * 1000), MAX_DEADLINE_MS))
    head = _BEGIN.pack(milliseconds, len(data), len(name)) + name
    yield encode(Kind.BEGIN, id, head + data[:CHUNK])
    yield from _rest(id, data)


def answer_frames(id: int, data: bytes) -> Iterator[bytes]:
    yield encode(Kind.ANSWER, id, _ANSWER.pack(len(data)) + data[:CHUNK])
    yield from _rest(id, data)


def _rest(id: int, data: bytes) -> Iterator[bytes]:
    for start in range(CHUNK, len(data), CHUNK):
        yield encode(Kind.DATA, id, data[start : start + CHUNK])


def encode_fault(code: str, message: str) -> bytes:
    return f"{code}\0{message}".encode()[:MAX_FAULT]


def decode_fault(payload: bytes) -> tuple[str, str]:
    code, _, message = payload[:MAX_FAULT].decode(errors="replace").partition("\0")
    return code or "INTERNAL", message


def decode_begin(payload: bytes) -> Begin:
    if len(payload) < _BEGIN.size:
        raise ProtocolViolation("a request without a head")
    milliseconds, size, length = _BEGIN.unpack_from(payload)
    end = _BEGIN.size + length
    if length > MAX_METHOD or end > len(payload) or len(payload) - end > size:
        raise ProtocolViolation("a request with a bad head")
    method = payload[_BEGIN.size : end].decode(errors="replace")
    return Begin(method, milliseconds / 1000, size, payload[end:])


def decode_answer(payload: bytes) -> tuple[int, bytes]:
    """(size, first bytes)"""
    if len(payload) < _ANSWER.size:
        raise ProtocolViolation("an answer without a head")
    (size,) = _ANSWER.unpack_from(payload)
    if len(payload) - _ANSWER.size > size:
        raise ProtocolViolation("an answer longer than announced")
    return size, payload[_ANSWER.size :]


class FrameReader:
    """Bytes in, frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Frames that are complete with this data. Raises `ProtocolViolation`."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _HEADER.size:
                kind, id_, length = _HEADER.unpack_from(self._buffer, start)
                if length > MAX_PAYLOAD:
                    raise ProtocolViolation(f"a frame of {length} bytes")
                end = start + _HEADER.size + length
                if len(self._buffer) < end:
                    return
                payload = bytes(self._buffer[start + _HEADER.size : end])
                start = end
                yield Frame(_kind(kind), id_, payload)
        finally:
            del self._buffer[:start]


def _kind(value: int) -> Kind:
    try:
        return Kind(value)
    except ValueError:
        raise ProtocolViolation(f"a frame of kind {value}") from None


class Assembly:
    """A message that arrives in pieces."""

    __slots__ = ("_data", "size")

    def __init__(self, size: int, first: bytes) -> None:
        self.size = size
        self._data = bytearray(first)

    def add(self, piece: bytes) -> None:
        if not piece or len(self._data) + len(piece) > self.size:
            raise ProtocolViolation("more data than announced")
        self._data += piece

    @property
    def complete(self) -> bool:
        return len(self._data) == self.size

    def data(self) -> bytes:
        return bytes(self._data)
