"""CoreML models run where Apple's runtime is not: every fixture gives the answers of the framework that it came from.

`tools/make_coreml_fixtures.py` made them.
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest

from loaders.api import ModelRejected
from loaders.archive import pack_folder
from loaders.coreml.package import HANDLERS, translate
from loaders.coreml.trees import floor32
from loaders.coreml_loader import CoremlLoader
from loaders.onnx_loader import OnnxLoader
from loaders.trial import difference

FOLDER = Path(__file__).parents[2] / "fixtures" / "coreml"
TOLERANCES = {"mlp_half": 1e-3, "palettised": 5e-3, "quantised": 2e-3, "sparse": 2e-4, "blocks": 2e-2}
"""Where the model itself is less exact than the answers: half precision, compressed weights."""
GOOD = sorted(p.stem for p in FOLDER.glob("*.coreml") if p.with_suffix(".npz").exists() and p.stem != "unknown")
"""silero has its answers elsewhere: `tests.support.loader_cases`."""


def load(name: str):
    return CoremlLoader().load(FOLDER / f"{name}.coreml", 1)


@pytest.mark.parametrize("name", GOOD)
def test_a_model_gives_the_answers_of_where_it_came_from(name: str) -> None:
    with np.load(FOLDER / f"{name}.npz") as known:
        arrays = dict(known)
    got = load(name).run({k[3:]: v for k, v in arrays.items() if k.startswith("in.")})
    expected = {k[4:]: v for k, v in arrays.items() if k.startswith("out.")}
    assert expected
    wrong = {n: d for n, v in expected.items() if (d := difference(got[n].astype(v.dtype), v, 1e-5, TOLERANCES.get(name, 2e-6)))}
    assert not wrong


def test_basic_pitch_gives_the_answers_of_its_own_onnx(tmp_path: Path) -> None:
    """Spotify's package holds one model as CoreML and as ONNX (with the batch free)."""
    saved = Path(str(distribution("basic-pitch").locate_file("basic_pitch/saved_models/icassp_2022")))
    pack_folder(saved / "nmp.mlpackage", tmp_path / "nmp.coreml")
    ours, theirs = CoremlLoader().load(tmp_path / "nmp.coreml", 2), OnnxLoader().load(saved / "nmp.onnx", 2)
    x = np.random.default_rng(0).normal(size=(1, 43844, 1)).astype(np.float32) * 0.1
    a, b = (m.run({m.schema.inputs[0].name: x}) for m in (ours, theirs))
    for name, number in (("Identity", 0), ("Identity_1", 1), ("Identity_2", 2)):
        assert float(np.abs(a[name] - b[f"StatefulPartitionedCall:{number}"]).max()) < 6e-4


def test_sizes_that_may_vary_do() -> None:
    model = load("mlp_rows")
    assert model.schema.inputs[0].shape == ("batch", 30)
    assert model.schema.outputs[0].shape[0] == "batch"
    for rows in (1, 3, 40):
        assert model.run({"x": np.ones((rows, 30), np.float32)})["y0"].shape == (rows, 2)


def test_what_has_no_translation_is_named() -> None:
    with pytest.raises(ModelRejected, match="operator crop cannot be translated"):
        load("unknown")


def test_every_operator_that_is_claimed_is_in_a_fixture() -> None:
    """An entry in the table is a promise."""
    from loaders.coreml.mil import read_function
    from loaders.coreml.package import open_package

    seen: set[str] = set()
    for name in GOOD:
        model, blobs = open_package(FOLDER / f"{name}.coreml")
        if 502 in model:
            seen |= {op.type for op in read_function(model.message(502), blobs, "main").operations}
    assert sorted(set(HANDLERS) - seen) == []


def test_a_translation_is_the_same_every_time() -> None:
    path = FOLDER / "cnn.coreml"
    assert translate(path) == translate(path)


def test_thresholds_are_rounded_down() -> None:
    for value in (0.1, 0.30000000001, 1e-50, -0.1, 2.0, 0.0):
        low = floor32(value)
        assert low <= value
        assert np.float32(low) == low
        assert float(np.nextafter(np.float32(low), np.float32(np.inf))) > value
