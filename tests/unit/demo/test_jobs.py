"""The demo's jobs in one process: engines, reductions and real models, without a swarm."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dimnode.demo.assets import ARTIFICIAL, DemoAssets
from dimnode.demo.jobs import DemoJob, compare, jobs
from dimnode.demo.make_assets import make
from loaders.api import LoadedModel
from loaders.builtin_catalog import BUILTIN_SCHEMAS
from loaders.onnx_loader import OnnxLoader
from tests.support.builtin import load_step
from tests.support.local_run import LocalRun

NODES = ("north", "south", "west")


@pytest.fixture(scope="module")
def swarm(assets: DemoAssets, tmp_path_factory: pytest.TempPathFactory) -> LocalRun:
    folder = tmp_path_factory.mktemp("steps")
    models: dict[str, LoadedModel] = {m.id: OnnxLoader().load(m.path, 1) for m in assets.models}
    models |= {name: load_step(name, folder) for name in BUILTIN_SCHEMAS}
    cabinets = {NODES[c.node]: {c.name: columns(c.path)} for c in assets.cabinets}
    return LocalRun(NODES, models, cabinets)


def columns(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="") as f:
        rows = list(csv.DictReader(f))
    return {name: np.array([float(r[name]) for r in rows]) for name in rows[0]}


Ran = Mapping[str, tuple[DemoJob, dict[str, np.ndarray], Mapping[str, Any]]]


@pytest.fixture(scope="module")
def ran(assets: DemoAssets, swarm: LocalRun) -> Ran:
    made = jobs(assets, NODES)
    return {job.title: (job, *swarm.run(job.form, job.client_data)) for job in made}


def test_there_is_a_job_of_each_pattern(ran: Ran) -> None:
    assert {job.form["pattern"] for job, _, _ in ran.values()} == {"collaborative", "comparative", "chained"}
    assert len(ran) == 6


def test_every_result_equals_the_reference(ran: Ran) -> None:
    problems = {title: job.check(outputs, details) for title, (job, outputs, details) in ran.items()}
    assert not any(problems.values()), problems


def test_summaries_say_what_came_out(ran: Ran) -> None:
    said = [job.summary(outputs, details) for job, outputs, details in ran.values()]
    assert "398 patients: 145 malignant, 253 benign" in said[0]
    assert ARTIFICIAL in said[0]
    assert "0.9591" in said[2]
    assert "540 digits" in said[3]
    assert said[4].startswith("5 lines: Region-basedsegmentation / ")
    assert said[5].startswith("2 lines: ")


def test_rows_stay_where_they_are(ran: Ran) -> None:
    _, outputs, details = ran["average predictions over the hospitals"]
    assert outputs["probabilities"].shape == (2,)
    assert [s["node"] for s in details["shards"]] == list(NODES)
    assert [s["rows"] for s in details["shards"]] == [200, 99, 99]


def test_steps_move_from_node_to_node(ran: Ran) -> None:
    _, _, details = ran["read a scanned page"]
    assert [s["node"] for s in details["steps"]] == [NODES[i % 3] for i in range(8)]


def test_a_wrong_result_is_found(ran: Ran) -> None:
    for job, outputs, details in ran.values():
        assert job.check({}, {}) != []
        for name, array in outputs.items():
            if array.dtype.kind in "fi" and name not in ("agreement",):
                assert job.check({**outputs, name: array + 1}, details) != [] or name == "label" or name == "probabilities"


def test_compare_says_what_differs() -> None:
    assert compare("y", np.ones(2), np.ones(2)) == []
    assert compare("y", np.ones(2), None) == ["output 'y' is missing"]
    assert "shape [3]" in compare("y", np.ones(2), np.ones(3))[0]
    assert "off by up to 1" in compare("y", np.ones(2), np.zeros(2))[0]
    assert "1 of 2" in compare("y", np.array(["a", "b"]), np.array(["a", "c"], dtype=object))[0]
    assert compare("y", np.zeros((0,)), np.zeros((0,))) == []


def test_a_nan_is_a_difference() -> None:
    assert compare("y", np.ones(1), np.array([np.nan])) != []


def test_assets_do_not_depend_on_the_day(assets: DemoAssets, demo_folder: Path, tmp_path: Path) -> None:
    make(tmp_path, 3)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in demo_folder.iterdir()}
    for path in tmp_path.iterdir():
        if path.suffix == ".npz":
            old, new = np.load(demo_folder / path.name), np.load(path)
            assert all((old[n] == new[n]).all() for n in old.files)
        else:
            assert path.read_bytes() == (demo_folder / path.name).read_bytes()
