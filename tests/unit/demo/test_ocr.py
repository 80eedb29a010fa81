"""The reading pipeline against what RapidOCR reads with the same three models."""

from __future__ import annotations

import numpy as np
import pytest

from dimnode.demo import data
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


def lines(read: dict[str, np.ndarray]) -> list[str]:
    return [t for t, s in zip(read["texts"], read["scores"], strict=True) if s >= CONFIDENT]


def test_a_page_reads_as_rapidocr_reads_it(reader: Reader) -> None:
    read = reader.read(data.page())
    assert read["texts"].tolist() == PAGE
    assert lines(read) == PAGE


def test_upside_down_the_orientation_step_decides(reader: Reader) -> None:
    turned = data.upside_down(data.page())
    assert len(lines(reader.read(turned))) == 2
    assert PAGE[1] in lines(reader.read(turned))
    assert lines(reader.read(turned, turn=False)) == []


def test_an_empty_page_has_no_lines(reader: Reader) -> None:
    assert reader.read(np.full((1, 100, 100, 3), 255, dtype=np.uint8))["texts"].tolist() == [""]
