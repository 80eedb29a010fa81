"""``init``, and what ``start`` refuses before a node runs."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from dimnode.cli.start import set_up_logging
from dimnode.config import load_config
from dimnode.home import Home
from tests.unit.cli.conftest import Shell


@pytest.fixture
def fresh(shell: Shell, tmp_path: Path) -> Shell:
    return Shell(Home(tmp_path / "fresh"), shell.client, shell.targets)


def test_init_makes_a_home(fresh: Shell) -> None:
    document = fresh.json("init", "--name", "anna", "--swarm", "wards")
    home = fresh.home
    assert document["peer_id"].startswith("12D3Koo")
    assert (document["swarm"], home.swarm_name()) == ("wards", "wards")
    for path in (home.identity_path, home.swarm_key_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    config = load_config(file=home.config_path, environ={})
    assert config.node.name == "anna"
    assert config.is_default("orchestrator.listen")


def test_init_again_keeps_everything(fresh: Shell) -> None:
    first = fresh.json("init")
    key = fresh.home.swarm_key()
    assert fresh.json("init") == first
    assert fresh.home.swarm_key() == key
    assert first["swarm"] == "dim"
    assert fresh("init", "--swarm", "other").exit_code == 1


def test_init_refuses_odd_names(fresh: Shell) -> None:
    assert fresh("init", "--name", "a b").exit_code == 2
    assert not fresh.home.exists()


def test_init_with_a_broken_identity(fresh: Shell) -> None:
    fresh.home.create()
    fresh.home.write(fresh.home.identity_path, "rubbish")
    assert fresh("init").exit_code == 1


@pytest.mark.parametrize(
    ("argv", "exit_code", "words"),
    [
        (("--set", "swarm.mdsn=1"), 2, "swarm.mdns"),
        (("--config", "/no/such.toml"), 2, "does not exist"),
        (("--profile", "x"), 2, "profile"),
        (("--set", "auth.mode=token"), 1, "not served"),
    ],
)
def test_start_refuses_what_it_cannot_honour(fresh: Shell, argv: tuple[str, ...], exit_code: int, words: str) -> None:
    done = fresh("start", *argv)
    assert done.exit_code == exit_code, done.output
    assert words in done.stderr


@pytest.mark.parametrize("form", ["console", "json", "auto"])
def test_logs_go_to_stderr(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    import logging

    import structlog

    set_up_logging("info", form)
    structlog.get_logger("x").warning("told", n=1)
    structlog.get_logger("x").debug("untold")
    logging.getLogger("library").warning("foreign")
    logging.getLogger("library").info("chatter")
    said = capfd.readouterr()
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()
    assert said.out == ""
    assert "told" in said.err
    assert "foreign" in said.err
    assert "untold" not in said.err
    assert "chatter" not in said.err
