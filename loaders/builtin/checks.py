"""Inputs against a step's schema, and the bounds of what a step will work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from loaders.api import Array, InputRejected, ModelSchema, TensorSchema


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may ask for; beyond it the inputs are refused."""

    pixels: int = 40_000_000
    """Of an image, and of a detector's map."""
    boxes: int = 1000
    crop_bytes: int = 512 * 1024 * 1024
    """Of all padded crops, and of what is made of them."""
    classes: int = 200_000
    """Of a text recogniser."""


def check_inputs(schema: ModelSchema, inputs: Mapping[str, Array]) -> None:
    """Names, dtypes, ranks and sizes; a symbolic axis has one size in all inputs. Raises `InputRejected`."""
    names = {t.name for t in schema.inputs}
    for name in sorted(names ^ set(inputs)):
        raise InputRejected(f"input {name!r} is missing" if name in names else f"there is no input {name!r}")
    sizes: dict[str, int] = {}
    for spec in schema.inputs:
        _check_dtype(spec, inputs[spec.name])
        _check_shape(spec, inputs[spec.name], sizes)


def _check_dtype(spec: TensorSchema, array: Array) -> None:
    fits = array.dtype.kind in "OU" if spec.dtype == "str" else array.dtype.name == spec.dtype
    if not fits:
        raise InputRejected(f"input {spec.name!r} must be {spec.dtype}, not {array.dtype.name}")


def _check_shape(spec: TensorSchema, array: Array, sizes: dict[str, int]) -> None:
    if array.ndim != len(spec.shape):
        raise InputRejected(f"input {spec.name!r} must have shape {list(spec.shape)}, not {list(array.shape)}")
    for want, have in zip(spec.shape, array.shape, strict=True):
        expected = sizes.setdefault(want, have) if isinstance(want, str) else want
        if expected is not None and have != expected:
            raise InputRejected(f"input {spec.name!r} must have shape {list(spec.shape)}, not {list(array.shape)}")


def check_image(image: Array, limits: Limits) -> None:
    """Raises `InputRejected` for an image without pixels or with too many."""
    check_area("the image", image.shape[1], image.shape[2], limits)


def check_area(what: str, height: int, width: int, limits: Limits) -> None:
    if height == 0 or width == 0:
        raise InputRejected(f"{what} has no pixels")
    if height * width > limits.pixels or max(height, width) > 32_000:
        raise InputRejected(f"{what} is {height} x {width}; {limits.pixels} pixels and a side of 32000 are the most")


def check_finite(name: str, array: Array) -> None:
    if not np.isfinite(array).all():
        raise InputRejected(f"input {name!r} holds NaN or infinities")
