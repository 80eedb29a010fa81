"""Models: a content-addressed artifact plus a manifest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from dimnode.domain import codec
from dimnode.domain.tensors import TensorValue

ModelFormat = Literal["onnx", "pt2", "torchscript", "safetensors", "mlx", "mlx-lm", "coreml", "builtin"]
FORMATS: tuple[ModelFormat, ...] = ("onnx", "pt2", "torchscript", "safetensors", "mlx", "mlx-lm", "coreml", "builtin")
TEXT_GENERATION = "text-generation"
"""Prompts in, texts out, told piece by piece. Inputs: ``prompt`` and parameters; outputs: ``text``, ``tokens``, ``finish``."""
SIGNING_PREFIX = b"dim model manifest\0"


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One input or output. ``shape`` holds sizes, names of symbolic axes, or None where unknown."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]
    optional: bool = False
    """An input that may be left out: a parameter."""


class GoldenPair(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Inputs and the outputs that the author got for them, inline. Every loader runs it before it takes a model; a value
    may differ by ``atol + rtol * |expected|``. Outputs that are left out are not compared."""

    inputs: dict[str, TensorValue]
    outputs: dict[str, TensorValue] = {}
    rtol: float = 1e-3
    atol: float = 1e-4


class Needs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What running the model takes. 0: not known."""

    memory: int = 0
    """Bytes that an agent with it holds: measured in its trial run, or as the author says if that is more."""
    gpu: bool = False
    """It is of no use without a GPU."""
    gpu_memory: int = 0
    """Bytes that its tensors take on one card, as the author says. More than 0: as ``gpu``."""

    @property
    def any_gpu(self) -> bool:
        return self.gpu or self.gpu_memory > 0


class ModelManifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """New fields have defaults and are left out while they have them: the CIDs of older manifests stay what they are."""

    id: str
    cid: str
    """CID of the artifact (UnixFS file; for built-in steps the DAG-CBOR descriptor)."""
    format: ModelFormat
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    size: int
    """Bytes of the artifact."""
    licence: str = ""
    batch_axis: int | None = None
    """0 if every input and output has the batch on axis 0 although no symbolic axis says so."""
    architecture: dict[str, Any] = {}
    """For weights without a graph (safetensors): the allow-listed architecture and its sizes."""
    golden: GoldenPair | None = None
    needs: Needs = Needs()
    task: str = ""
    """What it is for, where that makes a difference: `TEXT_GENERATION`."""
    author: str = ""
    """Peer id of who published it; empty: nobody says so."""
    signature: bytes = b""
    """The author's, over the manifest without it: `signed_bytes`."""

    def signed_bytes(self) -> bytes:
        return SIGNING_PREFIX + codec.encode(msgspec.structs.replace(self, signature=b""))

    def signed(self, author: str, sign: Callable[[bytes], bytes]) -> ModelManifest:
        """The same manifest by this author."""
        bare = msgspec.structs.replace(self, author=author, signature=b"")
        return msgspec.structs.replace(bare, signature=sign(bare.signed_bytes()))

    def authentic(self, verify: Callable[[str, bytes, bytes], bool]) -> bool:
        """Whether it is its author's, if it names one. ``verify(peer id, data, signature)``."""
        return not self.signature if not self.author else verify(self.author, self.signed_bytes(), self.signature)

    def batched_inputs(self) -> frozenset[str]:
        """Inputs whose axis 0 is the batch axis: symbolic, or said so by ``batch_axis``."""
        return frozenset(t.name for t in self.inputs if self._has_batch(t))

    def batched_outputs(self) -> frozenset[str]:
        """Outputs whose axis 0 is a symbolic axis shared with an input, or by ``batch_axis``."""
        symbols = {t.shape[0] for t in self.inputs if t.shape and not isinstance(t.shape[0], int)}
        return frozenset(
            t.name
            for t in self.outputs
            if (self.batch_axis == 0 and t.shape) or (t.shape and not isinstance(t.shape[0], int) and t.shape[0] in symbols)
        )

    def _has_batch(self, t: TensorSpec) -> bool:
        if not t.shape:
            return False
        return self.batch_axis == 0 or not isinstance(t.shape[0], int)


class ModelRef(msgspec.Struct, frozen=True, kw_only=True):
    """What a heartbeat says of a model that the node has: enough to find and fetch the manifest."""

    id: str
    cid: str
    manifest_cid: str
    format: ModelFormat
    size: int
    warm: bool = False
