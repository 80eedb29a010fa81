"""The reading pipeline against what RapidOCR reads with the same three models."""

from __future__ import annotations

import numpy as np
import pytest

from dimnode.demo import data
from dimnode.demo.assets import DemoAssets
from dimnode.demo.reference import Reader

PAGE = [
    "Region-basedsegmentation",
    "Let us first determine markers of the coins and the",
    "background.These markers are pixels that we can label",
    "unambiguously as either object or background.Here,",
    "histogram ofgreyvalues:",
]
CONFIDENT = 0.5
"""RapidOCR leaves out lines below this."""


@pytest.fixture(scope="module")
def reader() -> Reader:
    paths = data.ocr_model_paths()
    return Reader(paths["ocr-detect"], paths["ocr-orient"], paths["ocr-recognise"])


def lines(texts: np.ndarray, scores: np.ndarray) -> list[str]:
    return [str(t) for t, s in zip(texts, scores, strict=True) if s >= CONFIDENT]


def test_a_page_reads_as_rapidocr_reads_it(assets: DemoAssets) -> None:
    texts, scores = assets.expected["page.texts"], assets.expected["page.scores"]
    assert texts.tolist() == PAGE
    assert lines(texts, scores) == PAGE


def test_upside_down_the_orientation_step_decides(assets: DemoAssets, reader: Reader) -> None:
    with_it = lines(assets.expected["turned.texts"], assets.expected["turned.scores"])
    assert len(with_it) == 2
    assert PAGE[1] in with_it
    without = reader.read(assets.inputs["ocr.turned"], turn=False)
    assert lines(without["texts"], without["scores"]) == []


def test_an_empty_page_has_no_lines(reader: Reader) -> None:
    assert reader.read(np.full((1, 100, 100, 3), 255, dtype=np.uint8))["texts"].tolist() == [""]
