"""The demo's data: four "hospitals", handwritten digits, a page to read.

Everything comes out of installed packages (scikit-learn, scikit-image, rapidocr-onnxruntime's model
files), so nothing is downloaded while the demo runs. They are requirements of the demo, not of a node:
only `dimnode.demo.make_assets`, a process of its own, imports this.
"""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimnode.errors import FailedPrecondition

Array = NDArray[Any]
Split = tuple[Array, Array, Array, Array]
HOSPITALS = ("A", "B", "C", "D")
OCR_MODELS = {
    "ocr-detect": "ch_PP-OCRv4_det_infer.onnx",
    "ocr-orient": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "ocr-recognise": "ch_PP-OCRv4_rec_infer.onnx",
}
"""Model id -> file in rapidocr-onnxruntime's ``models`` folder."""


def _split(x: Array, y: Array) -> Split:
    """Train x, train y, test x, test y: 70 to 30, stratified, always the same."""
    from sklearn.model_selection import train_test_split

    a, b, ya, yb = train_test_split(x, y, test_size=0.3, random_state=0, stratify=y)
    return np.asarray(a), np.asarray(ya), np.asarray(b), np.asarray(yb)


def digits() -> Split:
    """Pixels / 16 as float32 [N, 64], classes int64 [N]: 1257 to train, 540 to test."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return _split((x / 16).astype(np.float32), y.astype(np.int64))


def cancer() -> Split:
    """Features float64 [N, 30], 1 for benign int64 [N]: 398 to train, 171 to test."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return _split(x, y.astype(np.int64))


def feature_names() -> tuple[str, ...]:
    """The 30 columns of `cancer`, in order, as CSV headers."""
    from sklearn.datasets import load_breast_cancer

    names: Any = load_breast_cancer()
    return tuple(str(n).replace(" ", "_") for n in names.feature_names)


def hospitals() -> list[tuple[Array, Array]]:
    """The training rows as four sites see them: sorted by mean radius and cut in four (100, 100, 99, 99
    rows), so that benign tumours are common at the first and rare at the last."""
    x, y, _, _ = cancer()
    return [(x[rows], y[rows]) for rows in np.array_split(np.argsort(x[:, 0]), len(HOSPITALS))]


def sites(nodes: int) -> list[tuple[tuple[str, ...], Array, Array]]:
    """Hospitals over ``nodes`` nodes in order, near equal: names, rows, labels. With fewer nodes than
    hospitals a node keeps the rows of several; further nodes keep none."""
    all_ = hospitals()
    groups = [g.tolist() for g in np.array_split(np.arange(len(all_)), min(nodes, len(all_)))]
    return [
        (tuple(HOSPITALS[i] for i in g), np.concatenate([all_[i][0] for i in g]), np.concatenate([all_[i][1] for i in g])) for g in groups
    ]


def write_cabinet(path: Path, x: Array, y: Array) -> None:
    """CSV with a header: the 30 features and ``y``. Numbers are written so that they read back exactly."""
    with path.open("w", newline="", encoding="utf-8") as f:
        out = csv.writer(f)
        out.writerow([*feature_names(), "y"])
        out.writerows([*(repr(v) for v in row.tolist()), int(label)] for row, label in zip(x, y, strict=True))


def page() -> Array:
    """scikit-image's scanned page: uint8 [1, 191, 384, 3]."""
    import skimage.data

    gray = np.asarray(skimage.data.page(), dtype=np.uint8)
    return np.repeat(gray[None, :, :, None], 3, axis=3)


def upside_down(image: Array) -> Array:
    """The same page, turned by 180 degrees."""
    return np.ascontiguousarray(image[:, ::-1, ::-1])


def ocr_model_paths() -> dict[str, Path]:
    """Model id -> file. Raises `FailedPrecondition` if rapidocr-onnxruntime is not installed."""
    spec = find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        raise FailedPrecondition(
            "the demo's OCR models are not installed", hint="pip install --no-deps rapidocr-onnxruntime==1.4.4 (or run `make demo`)."
        )
    folder = Path(spec.origin).parent / "models"
    return {name: folder / file for name, file in OCR_MODELS.items()}
