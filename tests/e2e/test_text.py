"""Text generation on real nodes: what a watcher sees is what comes out; crashes begin it anew; a cancel ends it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dimnode.client import Client
from tests.support.language_models import tiny_folder
from tests.support.real_swarm import ENVIRON, RealNode, RealSwarm, wait_until

PROMPTS = np.array(["Hello", "The licence"], dtype=object)
FORM: dict[str, Any] = {"pattern": "chained", "config": {"pipeline": [{"step": 1, "model_id": "tiny", "node_id": "anna"}]}}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RealNode, RealNode]]:
    """The model is on anna; whoever is asked at bert has to be told from there."""
    with RealSwarm(tmp_path_factory.mktemp("s")) as swarm:
        swarm.start("anna", "bert")
        with swarm["anna"].node_client() as client:
            added = client.add_model_file(str(tiny_folder(tmp_path_factory.mktemp("m") / "tiny", stops=False)), id="tiny", licence="MIT")
        assert added["format"] == "mlx-lm"
        wait_until(lambda: swarm["bert"].sees("anna"), "bert sees anna")
        with swarm["bert"].node_client() as client:
            wait_until(lambda: "tiny" in {m["id"] for m in client.models()}, "bert knows the model")
        yield swarm["anna"], swarm["bert"]


def submit(client: Client, count: int, **more: Any) -> str:
    return client.submit({**FORM, **more}, {"prompt": PROMPTS, "max_tokens": np.array(count, np.int32)})["job_id"]


def texts(events: list[dict[str, Any]], attempt: int) -> dict[int, str]:
    out: dict[int, str] = {}
    for event in events:
        piece = event.get("partial")
        if piece is not None and piece["attempt"] == attempt:
            assert piece["offset"] == len(out.get(piece["row"], ""))
            out[piece["row"]] = out.get(piece["row"], "") + piece["text"]
    return out


def busy_agent(node: RealNode) -> int:
    with node.node_client() as client:
        return next((a["pid"] for a in client.stats()["agents"]["agents"] if a["busy"]), 0)


@pytest.mark.timeout(240)
def test_watchers_at_either_node_see_the_text_that_comes_out(nodes: tuple[RealNode, RealNode]) -> None:
    for node in nodes:
        with node.client() as client:
            job = submit(client, 200)
            events = list(client.follow(job))
            result = client.wait(job)
        assert result["status"] == "completed"
        assert texts(events, 1) == dict(enumerate(result["outputs"]["text"].tolist()))
        assert result["outputs"]["tokens"].shape == (2, 200)
        assert sum("partial" in e for e in events) > 2
        assert events[-1]["status"] == "completed"


@pytest.mark.timeout(240)
def test_a_crash_begins_the_text_anew(nodes: tuple[RealNode, RealNode]) -> None:
    anna, bert = nodes
    with bert.client() as client:
        job = submit(client, 1500, retries=2)
        events: list[dict[str, Any]] = []
        for event in client.follow(job):
            events.append(event)
            if "partial" in event and not any(e["partial"]["attempt"] > 1 for e in events if "partial" in e) and len(events) > 3:
                pid = busy_agent(anna)
                if pid and not texts(events, 2):
                    with contextlib.suppress(ProcessLookupError):  # it was killed a moment ago, and the node has not seen it yet
                        os.kill(pid, signal.SIGKILL)
        result = client.wait(job)
    last = max(e["partial"]["attempt"] for e in events if "partial" in e)
    assert last > 1
    assert texts(events, 1)
    assert texts(events, last) == dict(enumerate(result["outputs"]["text"].tolist()))


@pytest.mark.timeout(240)
def test_cancelling_ends_the_agent_at_once(nodes: tuple[RealNode, RealNode]) -> None:
    anna, _ = nodes
    with anna.client() as client:
        job = submit(client, 8000)
        events: list[dict[str, Any]] = []
        for event in client.follow(job):
            events.append(event)
            if "partial" in event and not any(e.get("status") == "cancelled" for e in events):
                began = time.monotonic()
                assert client.cancel(job)["status"] == "cancelled"
                wait_until(lambda: not busy_agent(anna), "the agent is ended", within=10.0)
                assert time.monotonic() - began < 5
        assert events[-1]["status"] == "cancelled"


@pytest.mark.timeout(240)
def test_the_command_line_shows_it(nodes: tuple[RealNode, RealNode], tmp_path: Path) -> None:
    _, bert = nodes
    (tmp_path / "job.json").write_text(json.dumps(FORM))
    (tmp_path / "data.json").write_text(json.dumps({
        "prompt": {"dtype": "str", "shape": [1], "data": ["Hello"]}, "max_tokens": {"dtype": "int32", "shape": [], "data": [40]},
    }))  # fmt: skip
    command = [
        "submit",
        str(tmp_path / "job.json"),
        "--data",
        str(tmp_path / "data.json"),
        "--wait",
        "--json",
        "--home",
        str(bert.home.path),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "dimnode", *command], env=ENVIRON, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    text = json.loads(done.stdout)["outputs"]["text"]["data"][0]
    first_line = next((line for line in text.splitlines() if line.strip().isascii() and line.strip().isprintable() and len(line) > 3), "")
    assert "text 1]" in done.stderr
    assert first_line in done.stderr
