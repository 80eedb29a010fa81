from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.api import InferenceFailed, InputRejected, ModelRejected
from loaders.builtin import boxes as boxes_module
from loaders.builtin import crop as crop_module
from loaders.builtin.boxes import reading_order
from loaders.builtin.checks import Limits
from loaders.builtin.ctc import decode
from loaders.builtin_catalog import BUILTIN_SCHEMAS, descriptor
from loaders.builtin_loader import BuiltinLoader, BuiltinStep
from tests.support.builtin import load_step

Load = Callable[..., BuiltinStep]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    return lambda name, limits=None: load_step(name, tmp_path, limits)


def image(height: int = 60, width: int = 90, value: int = 200) -> np.ndarray:
    return np.full((1, height, width, 3), value, dtype=np.uint8)


def fits(step: BuiltinStep, outputs: dict[str, np.ndarray]) -> None:
    """Outputs are what the schema promises."""
    assert list(outputs) == [t.name for t in step.schema.outputs]
    sizes: dict[str, int] = {}
    for spec in step.schema.outputs:
        array = outputs[spec.name]
        assert ("str" if array.dtype.kind == "O" else array.dtype.name) == spec.dtype
        assert array.ndim == len(spec.shape)
        for want, have in zip(spec.shape, array.shape, strict=True):
            assert have == (sizes.setdefault(want, have) if isinstance(want, str) else want)


class TestPrepare:
    @pytest.mark.parametrize(
        ("height", "width", "want"),
        [(191, 384, (736, 1472)), (736, 736, (736, 736)), (500, 4000, (256, 1984)), (10, 4000, (32, 1984)), (2500, 2500, (1984, 1984))],
    )
    def test_sides_are_multiples_of_32_within_bounds(self, load: Load, height: int, width: int, want: tuple[int, int]) -> None:
        step = load("dim/ocr-prepare@1")
        out = step.run({"image": image(height, width)})
        fits(step, out)
        assert out["x"].shape[2:] == want

    def test_values_are_centred(self, load: Load) -> None:
        assert np.allclose(load("dim/ocr-prepare@1").run({"image": image(value=255)})["x"], 1)
        assert np.allclose(load("dim/ocr-prepare@1").run({"image": image(value=0)})["x"], -1)

    @pytest.mark.parametrize(
        "bad",
        [
            np.zeros((1, 5, 5, 4), np.uint8),
            np.zeros((5, 5, 3), np.uint8),
            np.zeros((1, 5, 5, 3), np.float32),
            np.zeros((1, 0, 5, 3), np.uint8),
            np.broadcast_to(np.zeros((1, 1, 1, 3), np.uint8), (1, 7000, 7000, 3)),
            np.broadcast_to(np.zeros((1, 1, 1, 3), np.uint8), (1, 40000, 1, 3)),
        ],
    )
    def test_what_is_no_usable_image_is_refused(self, load: Load, bad: np.ndarray) -> None:
        with pytest.raises(InputRejected):
            load("dim/ocr-prepare@1").run({"image": bad})

    @pytest.mark.parametrize("inputs", [{}, {"photo": image()}, {"image": image(), "more": image()}])
    def test_names_are_checked(self, load: Load, inputs: dict[str, np.ndarray]) -> None:
        with pytest.raises(InputRejected, match="input"):
            load("dim/ocr-prepare@1").run(inputs)


def score_map(*rectangles: tuple[int, int, int, int], score: float = 0.9) -> np.ndarray:
    found = np.zeros((1, 1, 120, 180), dtype=np.float32)
    for x0, y0, x1, y1 in rectangles:
        found[0, 0, y0:y1, x0:x1] = score
    return found


class TestBoxes:
    def test_boxes_grow_scale_to_the_image_and_come_in_reading_order(self, load: Load) -> None:
        step = load("dim/boxes@1")
        out = step.run({"scores": score_map((100, 12, 150, 24), (10, 8, 60, 20), (20, 80, 160, 95)), "image": image(60, 90)})
        fits(step, out)
        assert len(out["boxes"]) == 3
        first, second, third = out["boxes"]
        assert first[:, 0].max() < second[:, 0].min()
        assert third[:, 1].min() > first[:, 1].max()
        assert (first[0] < [5, 4]).all()
        assert (first[2] > [29, 9]).all()
        assert (out["boxes"] >= 0).all()
        assert (out["box_scores"] > 0.5).all()

    @pytest.mark.parametrize("scores", [score_map(), score_map((5, 5, 6, 6)), score_map((10, 10, 90, 40), score=0.4)])
    def test_noise_and_weak_areas_are_no_boxes(self, load: Load, scores: np.ndarray) -> None:
        step = load("dim/boxes@1")
        out = step.run({"scores": scores, "image": image()})
        fits(step, out)
        assert len(out["boxes"]) == 0

    def test_a_box_that_vanishes_in_a_small_image_is_left_out(self, load: Load) -> None:
        assert len(load("dim/boxes@1").run({"scores": score_map((10, 10, 16, 16)), "image": image(4, 4)})["boxes"]) == 0

    def test_not_more_than_the_limit(self, load: Load) -> None:
        many = score_map(*[(x, y, x + 14, y + 6) for x in range(5, 165, 40) for y in range(5, 110, 25)])
        assert len(load("dim/boxes@1", Limits(boxes=4)).run({"scores": many, "image": image(120, 180)})["boxes"]) <= 4

    def test_nan_is_refused(self, load: Load) -> None:
        with pytest.raises(InputRejected, match="NaN"):
            load("dim/boxes@1").run({"scores": np.full((1, 1, 32, 32), np.nan, np.float32), "image": image()})

    def test_what_cannot_be_grown_is_no_box(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(boxes_module, "_grow", lambda corners: None)
        found = boxes_module.find_boxes(score_map((10, 10, 90, 40)), image(), Limits())
        assert len(found["boxes"]) == 0

    @given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8))
    def test_reading_order_keeps_every_box(self, corners: list[tuple[int, int]]) -> None:
        found = [
            (np.array([[x, y], [x + 5, y], [x + 5, y + 5], [x, y + 5]], dtype=np.float32), float(i)) for i, (x, y) in enumerate(corners)
        ]
        assert sorted(s for _, s in reading_order(found)) == [float(i) for i in range(len(corners))]


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def boxes(*found: list[list[float]]) -> np.ndarray:
    return np.array(found, dtype=np.float32).reshape(-1, 4, 2)


class TestCrop:
    def test_crops_are_padded_to_one_size(self, load: Load) -> None:
        page = image()
        page[0, 10:20, 5:45] = 7
        step = load("dim/crop@1")
        out = step.run({"image": page, "boxes": boxes(box(5, 10, 45, 20), box(50, 10, 70, 30))})
        fits(step, out)
        assert out["sizes"].tolist() == [[10, 40], [20, 20]]
        assert out["crops"].shape == (2, 20, 40, 3)
        assert (out["crops"][0, :9, :39] == 7).all()
        assert (out["crops"][0, 10:] == 0).all()

    def test_upright_text_is_laid_on_its_side(self, load: Load) -> None:
        assert load("dim/crop@1").run({"image": image(), "boxes": boxes(box(5, 5, 15, 45))})["sizes"].tolist() == [[10, 40]]

    def test_no_boxes_no_crops(self, load: Load) -> None:
        step = load("dim/crop@1")
        out = step.run({"image": image(), "boxes": boxes()})
        fits(step, out)
        assert out["x"].shape == (0, 3, 48, 192)

    @pytest.mark.parametrize(
        "bad",
        [
            boxes(box(-5, 0, 10, 10)),
            boxes(box(0, 0, 100, 10)),
            boxes(box(0, 0, np.nan, 10)),
            boxes(box(3, 3, 3, 3)),
            boxes(*[box(0, 0, 10, 10)] * 5),
            np.zeros((1, 3, 2), np.float32),
        ],
    )
    def test_boxes_that_make_no_sense_are_refused(self, load: Load, bad: np.ndarray) -> None:
        with pytest.raises(InputRejected):
            load("dim/crop@1", Limits(boxes=4)).run({"image": image(), "boxes": bad})

    def test_padded_crops_are_bounded(self, load: Load) -> None:
        found = boxes(*[box(0, 0, 80, 50)] * 3)
        with pytest.raises(InputRejected, match="crops"):
            load("dim/crop@1", Limits(crop_bytes=20_000)).run({"image": image(), "boxes": found})
        with pytest.raises(InputRejected, match="lines"):
            load("dim/crop@1", Limits(crop_bytes=100_000)).run({"image": image(), "boxes": found})


class TestOrient:
    def crops(self, *sizes: tuple[int, int]) -> dict[str, np.ndarray]:
        tall, wide = max(h for h, _ in sizes), max(w for _, w in sizes)
        made = np.zeros((len(sizes), tall, wide, 3), dtype=np.uint8)
        for c, (h, w) in zip(made, sizes, strict=True):
            c[: h // 2, :w] = 255
            c[h // 2 : h, :w] = 50
        return {"crops": made, "sizes": np.array(sizes, dtype=np.int32)}

    def test_only_what_is_surely_upside_down_is_turned(self, load: Load) -> None:
        step = load("dim/orient@1")
        scores = np.array([[0.05, 0.95], [0.2, 0.8], [0.99, 0.01]], dtype=np.float32)
        out = step.run({**self.crops((48, 100), (48, 100), (48, 100)), "scores": scores})
        fits(step, out)
        assert out["turned"].tolist() == [True, False, False]
        assert out["x"][0, 0, 0, 0] < 0 < out["x"][1, 0, 0, 0]

    def test_lines_are_as_wide_as_the_widest_and_at_least_320(self, load: Load) -> None:
        scores = np.tile(np.array([[1, 0]], np.float32), (2, 1))
        assert load("dim/orient@1").run({**self.crops((48, 100), (24, 50)), "scores": scores})["x"].shape == (2, 3, 48, 320)
        assert load("dim/orient@1").run({**self.crops((48, 100), (10, 200)), "scores": scores})["x"].shape == (2, 3, 48, 960)

    def test_without_lines_there_is_one_blank_image(self, load: Load) -> None:
        step = load("dim/orient@1")
        empty = {"crops": np.zeros((0, 1, 1, 3), np.uint8), "sizes": np.zeros((0, 2), np.int32), "scores": np.zeros((0, 2), np.float32)}
        out = step.run(empty)
        fits(step, out)
        assert out["x"].shape == (1, 3, 48, 320)
        assert len(out["turned"]) == 0

    @pytest.mark.parametrize(
        "change",
        [
            {"sizes": np.array([[0, 5]], np.int32)},
            {"sizes": np.array([[49, 5]], np.int32)},
            {"scores": np.array([[np.nan, 0]], np.float32)},
            {"scores": np.zeros((2, 2), np.float32)},
            {"scores": np.zeros((1, 3), np.float32)},
        ],
    )
    def test_what_does_not_fit_is_refused(self, load: Load, change: dict[str, np.ndarray]) -> None:
        with pytest.raises(InputRejected):
            load("dim/orient@1").run({**self.crops((48, 100)), "scores": np.array([[1, 0]], np.float32), **change})

    def test_crops_are_bounded(self, load: Load) -> None:
        with pytest.raises(InputRejected, match="crops"):
            load("dim/orient@1", Limits(crop_bytes=10)).run({**self.crops((48, 100)), "scores": np.array([[1, 0]], np.float32)})


def path_of(text: str, alphabet: str) -> np.ndarray:
    """One row per character of ``text``, ``-`` for the blank."""
    classes = ["-", *alphabet, " "]
    out = np.full((1, len(text), len(classes)), 0.01, dtype=np.float32)
    for i, c in enumerate(text):
        out[0, i, classes.index(c)] = 0.8
    return out


class TestCtc:
    @pytest.mark.parametrize(("path", "text"), [("aab-b", "abb"), ("---", ""), ("a a", "a a"), ("-a-a--a", "aaa")])
    def test_repeats_collapse_and_blanks_vanish(self, load: Load, path: str, text: str) -> None:
        step = load("dim/ctc@1")
        out = step.run({"probabilities": path_of(path, "abc"), "characters": np.array(["a\nb\nc"], dtype=object)})
        fits(step, out)
        assert out["texts"].tolist() == [text]
        assert out["scores"][0] == pytest.approx(0.8 if text else 0)

    def test_a_trailing_newline_is_no_character(self) -> None:
        assert decode(path_of("ab", "ab"), np.array(["a\nb\n"]), Limits())["texts"].tolist() == ["ab"]

    @pytest.mark.parametrize(
        ("probabilities", "characters"),
        [
            (path_of("ab", "ab"), "a\nb\nc"),
            (np.ones((1, 2, 2), np.float32), "a"),
            (np.full((1, 2, 4), np.nan, np.float32), "a\nb"),
            (path_of("ab", "ab"), "\n" * 50),
            (path_of("ab", "ab"), "a" * 1000),
            (np.ones((1, 1, 30), np.float32), "a"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, load: Load, probabilities: np.ndarray, characters: str) -> None:
        with pytest.raises(InputRejected):
            load("dim/ctc@1", Limits(classes=20)).run({"probabilities": probabilities, "characters": np.array([characters])})

    def test_numbers_are_no_characters(self, load: Load) -> None:
        with pytest.raises(InputRejected, match="must be str"):
            load("dim/ctc@1").run({"probabilities": path_of("a", "a"), "characters": np.array([1])})


class TestLoader:
    def test_a_node_without_the_vision_libraries_says_what_to_install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("cv2", "pyclipper"):
            monkeypatch.setitem(sys.modules, name, None)
        for name in ("image", "boxes", "crop", "ctc"):
            monkeypatch.delitem(sys.modules, f"loaders.builtin.{name}", raising=False)
        for name in BUILTIN_SCHEMAS:
            (tmp_path / "f").write_bytes(descriptor(name))
            if name == "dim/ctc@1":
                continue
            with pytest.raises(ModelRejected, match=r"dimnode\[vision\]"):
                BuiltinLoader().load(tmp_path / "f", 1)

    def test_decoding_text_needs_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cv2", None)
        out = load_step("dim/ctc@1", tmp_path).run({"probabilities": path_of("a", "a"), "characters": np.array(["a"])})
        assert out["texts"].tolist() == ["a"]

    def test_a_file_that_is_no_descriptor(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"\x00")
        with pytest.raises(ModelRejected):
            BuiltinLoader().load(tmp_path / "f", 1)

    @pytest.mark.parametrize("error", [cv2.error("no"), ValueError("no"), MemoryError()])
    def test_a_failure_inside_is_told_without_its_insides(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        def broken(**_: Any) -> Any:
            raise error

        monkeypatch.setattr(crop_module, "crop", broken)
        step = load_step("dim/crop@1", tmp_path)
        with pytest.raises(InferenceFailed, match=r"dim/crop@1 failed"):
            step.run({"image": image(), "boxes": boxes()})
