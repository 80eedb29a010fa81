"""The ground that the fire tests stand on: links that can be cut one way, and nothing that stays behind."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

from tests.support.real_swarm import wait_until
from tools.chaos import isolation

WHY_NOT = isolation.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def links() -> str:
    return subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout


def test_a_way_is_cut_alone_and_healed_and_the_host_sees_nothing_of_it() -> None:
    before = links()
    done = subprocess.run(
        isolation.command(sys.executable, "-m", "tests.support.fire_trial"), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    # Answers are numbers of questions heard: of the seven that were asked while something was cut, only the first was heard.
    assert json.loads(done.stdout) == ["1", "", "3", "", "4", "", "5", "", "6"]
    assert links() == before


def test_all_is_gone_when_the_first_process_is_killed() -> None:
    with subprocess.Popen(isolation.command("sh", "-c", "sleep 86399 & sleep 86398")) as outer:

        def inside() -> list[psutil.Process]:
            return [p for p in psutil.Process(outer.pid).children(recursive=True) if p.name() == "sleep"]

        sleepers = wait_until(lambda: found if len(found := inside()) == 2 else [], "two processes run inside")
        outer.kill()
    wait_until(lambda: not any(p.is_running() for p in sleepers), "they are gone", 10)


def test_the_exit_code_comes_through() -> None:
    assert subprocess.run(isolation.command("sh", "-c", "exit 7"), check=False, timeout=30).returncode == 7
