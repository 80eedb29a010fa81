"""Models: a content-addressed artifact plus a manifest."""

from __future__ import annotations

from typing import Literal

import msgspec

ModelFormat = Literal["onnx", "pt2", "builtin"]


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output. ``shape`` holds sizes, names of symbolic axes, or None where unknown."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


class ModelManifest(msgspec.Struct, frozen=True, kw_only=True):
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
