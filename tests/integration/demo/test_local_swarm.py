"""The local swarm's bad ends: what fails is told, and nothing is left running."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from dimnode.demo import local_swarm
from dimnode.demo.local_swarm import LocalSwarm, Timing, down, up
from dimnode.errors import FailedPrecondition


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that end at once, since they are asked for what is not served."""
    monkeypatch.setattr(local_swarm, "SETTINGS", ("auth.mode=token",))


@pytest.mark.usefixtures("refused")
def test_a_node_that_ends_is_told_with_its_log(tmp_path: Path) -> None:
    swarm = LocalSwarm(tmp_path, Timing(ready=30))
    with pytest.raises(FailedPrecondition, match="exit code 1"):
        swarm.start()
    swarm.stop()
    assert "auth.mode" in swarm.nodes[0].tail()
    assert [n.name for n in swarm.nodes] == ["anna"]


@pytest.mark.usefixtures("refused")
def test_up_reports_failure_and_leaves_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert up(tmp_path / "s") == 1
    assert "auth.mode" in capsys.readouterr().err
    assert not (tmp_path / "s" / "swarm.json").exists()
    assert down(tmp_path / "s") == 0


def test_down_touches_no_stranger(tmp_path: Path) -> None:
    """A process id that has gone to another program is left alone."""
    (tmp_path / "swarm.json").write_text(json.dumps([{"name": "anna", "pid": psutil.Process().pid}]))
    assert down(tmp_path) == 0
    assert not (tmp_path / "swarm.json").exists()


def test_up_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "swarm.json").write_text("[]")
    assert up(tmp_path) == 1
