"""What `dimnode doctor` says of the sandbox: what was tried here, what is missing, and when that is a failure."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from dimnode.daemon.sandbox.report import Confinement
from dimnode.daemon.sandbox.trial import Trial
from tests.unit.cli.conftest import Shell

COMPLETE = Confinement(
    files=("landlock 7",), network=("seccomp",), processes=("seccomp",), privileges=("no_new_privs",), limits=("rlimits",)
)


def sandbox(shell: Shell) -> dict[str, Any]:
    return next(c for c in shell.json("doctor", exit_code=1)["checks"] if c["check"] == "sandbox")


def answers(monkeypatch: pytest.MonkeyPatch, trial: Trial | None) -> None:
    def run(*_: Any, **__: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess([], 0, stdout=msgspec.json.encode(trial) if trial is not None else b"")

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.skipif(sys.platform != "linux", reason="says what Linux has")
def test_the_sandbox_is_tried_on_this_machine(shell: Shell) -> None:
    said = sandbox(shell)
    assert said["ok"]
    for respect in Confinement().__struct_fields__:
        assert f"{respect}: " in str(said)


def test_what_is_missing_is_named_and_fails_where_it_is_required(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, Trial(msgspec.structs.replace(COMPLETE, files=()), ("files",)))
    said = sandbox(shell)
    assert said["ok"]
    assert "Not confined: files" in str(said)
    assert "files: none" in str(said)
    shell.home.config_path.write_text('[daemon]\nsandbox = "require"\n')
    assert not sandbox(shell)["ok"]
    answers(monkeypatch, Trial(COMPLETE, ("network",)))  # it says that it is confined, and the attempt worked
    said = sandbox(shell)
    assert not said["ok"]
    assert "Not confined: network" in str(said)
    answers(monkeypatch, None)
    assert not sandbox(shell)["ok"]


def test_a_sandbox_that_is_off_is_told(shell: Shell) -> None:
    shell.home.config_path.write_text('[daemon]\nsandbox = "off"\n')
    said = sandbox(shell)
    assert said["ok"]
    assert "off by daemon.sandbox" in str(said)
