"""Boxes cut out of an image and straightened; crops turned the right way up."""

from __future__ import annotations

import cv2
import numpy as np

from loaders.api import Array, InputRejected
from loaders.builtin.checks import Limits, check_finite, check_image
from loaders.builtin.image import LINE_HEIGHT, LINE_WIDTH, ORIENT_WIDTH, as_lines, common_width

UPRIGHT_RATIO = 1.5
"""A crop this much taller than wide is text from top to bottom: it is laid on its side."""
TURN_SCORE = 0.9


def crop(image: Array, boxes: Array, limits: Limits) -> dict[str, Array]:
    """``image`` uint8 [1, H, W, 3], ``boxes`` float32 [N, 4, 2] -> ``crops`` uint8 [N, h, w, 3] padded with 0,
    ``sizes`` int32 [N, 2] (height, width), ``x`` float32 [N, 3, 48, 192]."""
    check_image(image, limits)
    _check_boxes(boxes, image.shape[1], image.shape[2], limits)
    cut = [_straighten(image[0], box) for box in boxes]
    sizes = np.array([c.shape[:2] for c in cut], dtype=np.int32).reshape(-1, 2)
    tall, wide = (int(n) for n in sizes.max(axis=0)) if cut else (1, 1)
    if len(cut) * tall * wide * 3 > limits.crop_bytes:
        raise InputRejected(f"{len(cut)} crops of up to {tall} x {wide} pixels are more than one step can hold")
    crops = np.zeros((len(cut), tall, wide, 3), dtype=np.uint8)
    for padded, c in zip(crops, cut, strict=True):
        padded[: c.shape[0], : c.shape[1]] = c
    return {"crops": crops, "sizes": sizes, "x": as_lines(cut, ORIENT_WIDTH, limits)}


def _check_boxes(boxes: Array, height: int, width: int, limits: Limits) -> None:
    if len(boxes) > limits.boxes:
        raise InputRejected(f"there are {len(boxes)} boxes; {limits.boxes} are the most")
    check_finite("boxes", boxes)
    if len(boxes) and (boxes.min() < 0 or boxes[..., 0].max() > width or boxes[..., 1].max() > height):
        raise InputRejected("input 'boxes' has corners outside the image")


def _straighten(image: Array, box: Array) -> Array:
    """The box as an upright rectangle, by a perspective transform; at least one pixel each way."""
    box = np.ascontiguousarray(box, dtype=np.float32)
    width = max(1, int(max(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[2] - box[3]))))
    height = max(1, int(max(np.linalg.norm(box[0] - box[3]), np.linalg.norm(box[1] - box[2]))))
    if cv2.contourArea(box) <= 0:
        raise InputRejected("input 'boxes' has a box without area")
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float32)
    transform = cv2.getPerspectiveTransform(box, corners)
    cut = cv2.warpPerspective(image, transform, (width, height), borderMode=cv2.BORDER_REPLICATE, flags=cv2.INTER_CUBIC)
    return np.rot90(cut) if height / width >= UPRIGHT_RATIO else cut


def orient(crops: Array, sizes: Array, scores: Array, limits: Limits) -> dict[str, Array]:
    """``crops`` and ``sizes`` as `crop` made them, ``scores`` float32 [N, 2] (upright, upside down) -> ``x``
    float32 [max(N, 1), 3, 48, W], ``turned`` bool [N]."""
    if len(crops) > limits.boxes or crops.nbytes > limits.crop_bytes:
        raise InputRejected(f"{len(crops)} crops are more than one step can hold")
    check_finite("scores", scores)
    if len(sizes) and (sizes.min() < 1 or (sizes > crops.shape[1:3]).any()):
        raise InputRejected("input 'sizes' does not fit the crops")
    turned = (scores.argmax(axis=1) == 1) & (scores[:, 1] > TURN_SCORE)
    lines = [c[:h, :w] for c, (h, w) in zip(crops, sizes.tolist(), strict=True)]
    lines = [cv2.rotate(c, cv2.ROTATE_180) if t else c for c, t in zip(lines, turned.tolist(), strict=True)]
    x = as_lines(lines, common_width(lines), limits) if lines else np.zeros((1, 3, LINE_HEIGHT, LINE_WIDTH), dtype=np.float32)
    return {"x": x, "turned": turned}
