"""The home: files, modes, the lock, and where sockets go."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dimnode.errors import FailedPrecondition, InvalidArgument, Unavailable
from dimnode.home import Control, Home, home_path, new_key


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_path_flag_environment_platform(tmp_path: Path) -> None:
    assert home_path(str(tmp_path), {"DIM_HOME": "/elsewhere"}) == tmp_path
    assert home_path(None, {"DIM_HOME": str(tmp_path)}) == tmp_path
    assert home_path(None, {}).name == "dimnode"
    assert home_path("relative", {}).is_absolute()


def test_private_by_mode(home: Home) -> None:
    home.set_swarm("s", new_key())
    assert mode(home.path) == 0o700
    assert mode(home.swarm_key_path) == 0o600
    assert mode(home.folder("blocks")) == 0o700


def test_create_says_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition):
        Home(tmp_path / "file").create()


def test_swarm_round_trip(home: Home) -> None:
    assert home.swarm_key() is None
    assert home.swarm_name() is None
    key = new_key()
    home.set_swarm("wards", key)
    assert (home.swarm_key(), home.swarm_name()) == (key, "wards")


@pytest.mark.parametrize("content", ["", "abc", "g" * 64, "0" * 63])
def test_bad_swarm_key_is_refused(home: Home, content: str) -> None:
    home.swarm_key_path.write_text(content)
    with pytest.raises(InvalidArgument, match="64 hexadecimal"):
        home.swarm_key()


def test_two_nodes_cannot_share_a_home(home: Home) -> None:
    with home.lock(), pytest.raises(FailedPrecondition, match="already running"), home.lock():
        pass
    with home.lock():
        pass


def test_control_round_trip_and_stale(home: Home) -> None:
    with pytest.raises(Unavailable, match="no node"):
        home.control()
    control = Control(node="unix:/a", orchestrator="unix:/b", pid=os.getpid())
    home.write_control(control)
    assert home.control() == control
    home.write_control(Control(node="unix:/a", orchestrator="unix:/b", pid=2**22 + 1))
    with pytest.raises(Unavailable):
        home.control()
    home.control_path.write_text("{")
    with pytest.raises(Unavailable):
        home.control()
    home.clear_control()
    home.clear_control()


def test_long_paths_get_short_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    near = Home(Path("/h"))
    assert near.socket_path("node") == Path("/h/node.sock")
    far = Home(tmp_path / ("x" * 120))
    path = far.socket_path("node")
    assert path.parent.parent == tmp_path
    assert mode(path.parent) == 0o700
    assert far.socket_path("orchestrator").parent == path.parent
    path.parent.chmod(0o755)
    with pytest.raises(FailedPrecondition, match="somebody else"):
        far.socket_path("node")
