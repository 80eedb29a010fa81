"""Images to network inputs: scaling, normalising, padding to a common size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from loaders.api import Array, InputRejected
from loaders.builtin.checks import Limits, check_area, check_image

SHORT_SIDE = 736
LONG_SIDE = 2000
MULTIPLE = 32
LINE_HEIGHT = 48
ORIENT_WIDTH = 192
LINE_WIDTH = 320
"""A recogniser's input is at least this wide."""


def prepare(image: Array, limits: Limits) -> dict[str, Array]:
    """uint8 [1, H, W, 3] -> ``x`` float32 [1, 3, h, w], h and w multiples of 32."""
    check_image(image, limits)
    height, width = image.shape[1:3]
    ratio = max(1.0, SHORT_SIDE / min(height, width))
    ratio = min(ratio, LONG_SIDE / max(height, width)) if max(height, width) * ratio > LONG_SIDE else ratio
    h, w = (max(MULTIPLE, round(int(side * ratio) / MULTIPLE) * MULTIPLE) for side in (height, width))
    check_area("the scaled image", h, w, limits)
    scaled = cv2.resize(image[0], (w, h)).astype(np.float32)
    x = (scaled * (1 / 255.0) - 0.5) / 0.5
    return {"x": np.ascontiguousarray(x.transpose(2, 0, 1)[None], dtype=np.float32)}


def as_line(crop: Array, width: int) -> Array:
    """uint8 [h, w, 3] -> float32 [3, 48, width]: scaled to the height, squeezed if it is too wide, padded
    with 0 on the right."""
    height, across = crop.shape[:2]
    scaled_width = min(width, math.ceil(LINE_HEIGHT * across / height))
    scaled = cv2.resize(crop, (scaled_width, LINE_HEIGHT)).astype(np.float32)
    line = np.zeros((3, LINE_HEIGHT, width), dtype=np.float32)
    line[:, :, :scaled_width] = (scaled.transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return line


def as_lines(crops: Sequence[Array], width: int, limits: Limits) -> Array:
    """[N] crops -> float32 [N, 3, 48, width]."""
    if len(crops) * 3 * LINE_HEIGHT * width * 4 > limits.crop_bytes:
        raise InputRejected(f"{len(crops)} lines of width {width} are more than one batch can hold")
    if not crops:
        return np.zeros((0, 3, LINE_HEIGHT, width), dtype=np.float32)
    return np.stack([as_line(c, width) for c in crops])


def common_width(crops: Sequence[Array]) -> int:
    """Width at height 48 of the widest crop in proportion, at least 320."""
    ratios = [c.shape[1] / c.shape[0] for c in crops]
    return int(LINE_HEIGHT * max([LINE_WIDTH / LINE_HEIGHT, *ratios]))
