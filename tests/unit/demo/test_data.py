from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dimnode.demo import assets as assets_module
from dimnode.demo import data, make_assets
from dimnode.demo.assets import MODELS, ROUNDS, DemoAssets, prepare
from dimnode.demo.reference import accuracy, run, session, training
from dimnode.errors import FailedPrecondition


class TestHospitals:
    def test_the_split_is_the_published_one(self) -> None:
        sites = data.hospitals()
        assert [len(y) for _, y in sites] == [100, 100, 99, 99]
        assert [round(float(y.mean()), 2) for _, y in sites] == [0.97, 0.93, 0.57, 0.04]

    @pytest.mark.parametrize(
        ("nodes", "groups"), [(1, ["ABCD"]), (3, ["AB", "C", "D"]), (4, ["A", "B", "C", "D"]), (9, ["A", "B", "C", "D"])]
    )
    def test_every_hospital_is_on_one_node(self, nodes: int, groups: list[str]) -> None:
        sites = data.sites(nodes)
        assert ["".join(names) for names, _, _ in sites] == groups
        assert sum(len(y) for _, _, y in sites) == 398

    def test_a_cabinet_reads_back_exactly(self, tmp_path: Path) -> None:
        x, y = data.hospitals()[3]
        data.write_cabinet(tmp_path / "c.csv", x, y)
        with (tmp_path / "c.csv").open(newline="") as f:
            rows = list(csv.DictReader(f))
        assert list(rows[0]) == [*data.feature_names(), "y"]
        assert (np.array([[float(r[c]) for c in data.feature_names()] for r in rows]) == x).all()
        assert [int(r["y"]) for r in rows] == y.tolist()


class TestModels:
    def test_they_are_small(self) -> None:
        assert sum(p.stat().st_size for p in MODELS.iterdir()) < 1_000_000

    @pytest.mark.parametrize(("name", "least"), [("logreg", 0.97), ("forest", 0.95), ("svm", 0.987), ("mlp", 0.97)])
    def test_digits_classifiers_have_a_batch_axis_and_know_digits(self, name: str, least: float) -> None:
        _, _, x, y = data.digits()
        model = session(MODELS / f"digits_{name}.onnx")
        assert [(i.name, i.type, i.shape) for i in model.get_inputs()] == [("X", "tensor(float)", ["N", 64])]
        assert [(o.name, o.shape[0]) for o in model.get_outputs()] == [("label", "N"), ("probabilities", "N")]
        assert (run(model, X=x)["label"] == y).mean() >= least

    def test_the_predictor_is_right_on_most_test_rows(self) -> None:
        _, _, x, y = data.cancer()
        assert (run(session(MODELS / "hospital_predict.onnx"), x=x.astype(np.float32))["label"] == y).mean() == pytest.approx(
            0.9591, abs=1e-4
        )

    @pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
    def test_the_trainer_takes_five_steps_of_gradient_descent_however_it_is_optimised(self, level: str) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        model = onnxruntime.InferenceSession(str(MODELS / "hospital_train.onnx"), options, providers=["CPUExecutionProvider"])
        x, y = data.hospitals()[1]
        train = data.cancer()[0]
        z = (x - train.mean(axis=0)) / train.std(axis=0)
        w = start = np.random.default_rng(0).normal(size=31)
        for _ in range(5):
            error = 1 / (1 + np.exp(-(z @ w[:-1] + w[-1]))) - y
            w = w - 0.5 * np.r_[z.T @ error / len(y) + 1e-3 * w[:-1], error.mean()]
        found = run(model, weights=start, x=x, y=y.astype(np.float64))["new_weights"]
        np.testing.assert_allclose(found, w, rtol=1e-10)

    def test_training_over_four_hospitals_gets_where_all_rows_in_one_place_get(self) -> None:
        train, _, x, y = data.cancer()
        path = MODELS / "hospital_train.onnx"
        by_round = {r: round(accuracy(training(path, data.sites(4), r), train, x, y), 4) for r in (1, 5, 10, 20)}
        assert by_round == {1: 0.9123, 5: 0.9474, 10: 0.9591, 20: 0.9591}
        assert round(accuracy(training(path, data.sites(3), ROUNDS), train, x, y), 4) == 0.9591


class TestPreparing:
    def test_everything_is_on_disk(self, assets: DemoAssets) -> None:
        assert all(m.path.is_file() for m in assets.models)
        assert {m.node for m in assets.models} == {0, 1, 2}
        assert [(c.node, c.hospitals, c.rows) for c in assets.cabinets] == [(0, ("A", "B"), 200), (1, ("C",), 99), (2, ("D",), 99)]
        assert len(assets.columns) == 30

    def test_the_drivers_side_imports_no_framework(self) -> None:
        names = "('sklearn', 'skimage', 'onnxruntime', 'cv2', 'torch')"
        code = f"import sys, dimnode.demo.assets, dimnode.demo.jobs; sys.exit(any(m in sys.modules for m in {names}))"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_what_is_missing_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "sklearn.py").write_text("raise ImportError(name='sklearn')")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
        with pytest.raises(FailedPrecondition, match="needs sklearn, which is not installed"):
            prepare(tmp_path / "out", 3)

    def test_missing_model_files_are_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(data, "find_spec", lambda name: None)
        assert make_assets.main(["", str(tmp_path), "3"]) == 1
        assert "rapidocr-onnxruntime" in capsys.readouterr().err

    def test_a_process_that_takes_too_long_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(FailedPrecondition, match=r"within 0\.001 s"):
            prepare(tmp_path, 3, timeout=0.001)

    def test_a_process_that_says_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        done = subprocess.CompletedProcess([], 1, "", "")
        monkeypatch.setattr(assets_module.subprocess, "run", lambda *a, **k: done)
        with pytest.raises(FailedPrecondition, match="no reason given"):
            prepare(tmp_path, 3)
