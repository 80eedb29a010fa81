"""Attempts under a real ``sandbox-exec``: *not run here*, but for the control, which shows that they would succeed without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dimnode.daemon.sandbox import macos
from dimnode.daemon.sandbox.policy import AgentPolicy, library_folders, without
from tests.integration.daemon.test_agents import X, fast, running_pool
from tests.support.hardware import ON_A_MAC

TRIES = """
import json, os, socket, sys
secret, model, scratch = sys.argv[1:]

def send():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"x", ("127.0.0.1", 9))

def connect():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with socket.create_connection(listening.getsockname(), 2):
            pass

def fork():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)

def program():
    true = next(p for p in ("/usr/bin/true", "/bin/true") if os.path.exists(p))
    os.posix_spawn(true, [true], {})

def write(path):
    with open(path, "w") as f:
        f.write("x")

attempts = {
    "allowed: read the model": lambda: open(model).close(),
    "send a packet": send, "make a connection": connect, "read a secret": lambda: open(secret).close(),
    "list the home": lambda: os.listdir(os.path.dirname(secret)), "write to the secret": lambda: open(secret, "a").close(),
    "write in its own folder": lambda: write(os.path.join(scratch, "x")), "change the model": lambda: open(model, "a").close(),
    "fork": fork, "run a program": program,
}
done = {}
for name, attempt in attempts.items():
    try:
        attempt()
        done[name] = True
    except OSError:
        done[name] = False
print(json.dumps(done), flush=True)
"""


def tried(folder: Path, *, sandboxed: bool) -> dict[str, bool]:
    """Attempt -> whether it succeeded."""
    home = folder / "home"
    scratch = home / "agent-1"
    scratch.mkdir(parents=True)
    secret, model = home / "identity.key", home / "model.onnx"
    secret.write_text("secret")
    model.write_text("model")
    policy = AgentPolicy(memory=1 << 30, scratch=str(scratch), read=(*without(library_folders(), home), str(model)))
    command = [sys.executable, "-I", "-c", TRIES, str(secret), str(model), str(scratch)]
    done = subprocess.run(
        macos.command(policy, command) if sandboxed else command, capture_output=True, text=True, timeout=60, check=True, cwd=scratch
    )
    return json.loads(done.stdout)


def test_without_the_sandbox_every_attempt_succeeds(tmp_path: Path) -> None:
    """Or the next test could not fail."""
    assert [name for name, succeeded in tried(tmp_path, sandboxed=False).items() if not succeeded] == []


@ON_A_MAC
def test_seatbelt_refuses_all_but_the_model(tmp_path: Path) -> None:
    found = tried(tmp_path.resolve(), sandboxed=True)
    assert [name for name, succeeded in found.items() if succeeded] == ["allowed: read the model"]


@ON_A_MAC
@pytest.mark.timeout(180)
async def test_an_agent_works_under_seatbelt_and_says_so(tmp_path: Path) -> None:
    async with running_pool(tmp_path.resolve(), sandbox="best") as pool:
        assert (await pool.run(fast(tmp_path.resolve()), {"x": X}))["y"].shape == (2, 2)
        assert "network" not in pool.confinement.missing()
        assert "files" not in pool.confinement.missing()
