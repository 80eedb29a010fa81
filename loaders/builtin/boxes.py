"""Text boxes out of a detector's score map.

Differentiable binarization (Liao et al. 2020, https://arxiv.org/abs/1911.08947), section 3.4, with the
constants of PP-OCRv4: binarize, dilate, take the contours' smallest rectangles, drop weak and small
ones, and grow the rest, since the detector is trained on shrunken text.
"""

from __future__ import annotations

import cv2
import numpy as np
import pyclipper
from numpy.typing import NDArray

from loaders.api import Array
from loaders.builtin.checks import Limits, check_area, check_finite, check_image

PIXEL_SCORE = 0.3
BOX_SCORE = 0.5
GROWTH = 1.6
SMALLEST_SIDE = 3
SAME_LINE = 10
"""Boxes whose tops are closer than this many pixels are one line, read from left to right."""

Points = NDArray[np.float32]


def find_boxes(scores: Array, image: Array, limits: Limits) -> dict[str, Array]:
    """``scores`` float32 [1, 1, h, w], ``image`` uint8 [1, H, W, 3] -> ``boxes`` float32 [N, 4, 2] (x, y) in
    the image's pixels, ``box_scores`` float32 [N]."""
    check_image(image, limits)
    check_area("the score map", scores.shape[2], scores.shape[3], limits)
    check_finite("scores", scores)
    height, width = image.shape[1:3]
    found = [b for b in (_box(c, scores[0, 0], height, width) for c in _contours(scores[0, 0], limits)) if b is not None]
    ordered = reading_order(found)
    boxes = np.array([b for b, _ in ordered], dtype=np.float32).reshape(-1, 4, 2)
    return {"boxes": boxes, "box_scores": np.array([s for _, s in ordered], dtype=np.float32)}


def _contours(scores: Array, limits: Limits) -> list[Array]:
    mask = cv2.dilate((scores > PIXEL_SCORE).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask * 255, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return list(contours[: limits.boxes])


def _box(contour: Array, scores: Array, height: int, width: int) -> tuple[Points, float] | None:
    """One contour's box, scaled from the map to the image; None if it is too small or too weak."""
    corners, side = _smallest_rectangle(contour)
    if side < SMALLEST_SIDE:
        return None
    score = _mean_inside(scores, corners)
    if score < BOX_SCORE:
        return None
    grown = _grow(corners)
    if grown is None:
        return None
    corners, side = _smallest_rectangle(grown)
    if side < SMALLEST_SIDE + 2:
        return None
    box = _to_image(corners, scores.shape, height, width)
    if int(np.linalg.norm(box[0] - box[1])) <= SMALLEST_SIDE or int(np.linalg.norm(box[0] - box[3])) <= SMALLEST_SIDE:
        return None
    return box, score


def _smallest_rectangle(contour: Array) -> tuple[Points, float]:
    """Corners from the top left, clockwise, and the shorter side."""
    rectangle = cv2.minAreaRect(contour)
    points = sorted(cv2.boxPoints(rectangle).tolist(), key=lambda p: p[0])
    left = sorted(points[:2], key=lambda p: p[1])
    right = sorted(points[2:], key=lambda p: p[1])
    corners = np.array([left[0], right[0], right[1], left[1]], dtype=np.float32)
    return corners, float(min(rectangle[1]))


def _mean_inside(scores: Array, corners: Points) -> float:
    h, w = scores.shape
    x0, y0 = np.clip(np.floor(corners.min(axis=0)).astype(np.int32), 0, [w - 1, h - 1])
    x1, y1 = np.clip(np.ceil(corners.max(axis=0)).astype(np.int32), 0, [w - 1, h - 1])
    mask = np.zeros((y1 - y0 + 1, x1 - x0 + 1), dtype=np.uint8)
    cv2.fillPoly(mask, [(corners - np.array([x0, y0], dtype=np.float32)).astype(np.int32)], (1,))
    return float(cv2.mean(scores[y0 : y1 + 1, x0 : x1 + 1], mask)[0])


def _grow(corners: Points) -> Array | None:
    """Moved outwards by area x growth / perimeter (Vatti clipping); None if nothing is left of it."""
    x, y = corners.astype(np.float64).T
    area = 0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
    perimeter = np.hypot(x - np.roll(x, -1), y - np.roll(y, -1)).sum()
    offset = pyclipper.PyclipperOffset()  # pyright: ignore[reportAttributeAccessIssue]
    offset.AddPath(corners, pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)  # pyright: ignore[reportAttributeAccessIssue]
    paths = offset.Execute(area * GROWTH / perimeter)
    return np.array(paths[0]).reshape(-1, 1, 2) if paths else None


def _to_image(corners: Points, shape: tuple[int, ...], height: int, width: int) -> Points:
    """Whole pixels, clockwise from the top left, inside the image."""
    h, w = shape
    scaled = np.round(corners / np.array([w, h], dtype=np.float32) * np.array([width, height], dtype=np.float32))
    return np.clip(_clockwise(scaled), 0, [width - 1, height - 1]).astype(np.float32)


def _clockwise(points: Points) -> Points:
    by_x = points[np.argsort(points[:, 0], kind="stable")]
    left, right = by_x[:2], by_x[2:]
    top_left, bottom_left = left[np.argsort(left[:, 1], kind="stable")]
    top_right, bottom_right = right[np.argsort(right[:, 1], kind="stable")]
    return np.array([top_left, top_right, bottom_right, bottom_left], dtype=np.float32)


def reading_order(found: list[tuple[Points, float]]) -> list[tuple[Points, float]]:
    """From top to bottom, and from left to right where two boxes are on one line."""
    out = sorted(found, key=lambda b: (b[0][0][1], b[0][0][0]))
    for i in range(len(out) - 1):
        for j in range(i, -1, -1):
            upper, lower = out[j][0][0], out[j + 1][0][0]
            if abs(lower[1] - upper[1]) >= SAME_LINE or lower[0] >= upper[0]:
                break
            out[j], out[j + 1] = out[j + 1], out[j]
    return out
