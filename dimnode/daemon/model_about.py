"""What a manifest says to a loader, on its way into an agent: JSON, within the header of the load request."""

from __future__ import annotations

from typing import Any

import msgspec

from dimnode.domain.model import GoldenPair, ModelManifest, TensorSpec
from dimnode.domain.tensors import Tensors, to_numpy
from loaders.api import About, Array, Golden, TensorSchema


class _Form(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    architecture: dict[str, Any] = {}
    golden: GoldenPair | None = None


def encode(
    inputs: tuple[TensorSpec, ...] = (),
    outputs: tuple[TensorSpec, ...] = (),
    architecture: dict[str, Any] | None = None,
    golden: GoldenPair | None = None,
) -> str:
    return msgspec.json.encode(_Form(inputs=inputs, outputs=outputs, architecture=architecture or {}, golden=golden)).decode()


def of_manifest(manifest: ModelManifest) -> str:
    return encode(manifest.inputs, manifest.outputs, manifest.architecture, manifest.golden)


def decode(text: str) -> About:
    """Empty: nothing is known. Raises `msgspec.DecodeError`, `InvalidArgument` for what `encode` did not make."""
    form = msgspec.json.decode(text, type=_Form) if text else _Form()
    golden = form.golden
    return About(
        inputs=_schemas(form.inputs),
        outputs=_schemas(form.outputs),
        architecture=form.architecture,
        golden=Golden(_arrays(golden.inputs), _arrays(golden.outputs), golden.rtol, golden.atol) if golden else None,
    )


def _schemas(specs: tuple[TensorSpec, ...]) -> tuple[TensorSchema, ...]:
    return tuple(TensorSchema(t.name, t.dtype, t.shape, t.optional) for t in specs)


def _arrays(values: Tensors) -> dict[str, Array]:
    return {name: to_numpy(value) for name, value in values.items()}
