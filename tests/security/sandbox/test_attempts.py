"""Real attempts in a really sandboxed process: everything hostile is refused, everything that inference needs works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dimnode.daemon.sandbox.policy import AgentPolicy, library_folders, without
from tests.integration.daemon.test_agents import fast, pids, running_pool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="not run here: needs Linux; macOS has tests of its own")

NAMES = [
    "read a secret", "list the home", "list the root", "read the password file", "read through a link", "read through /proc/self/root",
    "read another process's environment", "read another process's memory", "write beside the secret", "write to the secret",
    "write in the temporary folder", "write in its own folder", "make an empty file", "make a folder", "remove the secret",
    "rename the secret", "change the secret's mode", "change the secret's owner", "change the secret's times", "change the model",
    "a file in memory", "shared memory", "more memory than granted", "many open files", "a core dump", "higher limits", "a TCP socket",
    "a UDP socket", "a raw socket", "a Unix socket", "a netlink socket", "a socket pair", "io_uring", "fork", "vfork and exec", "exec",
    "a shell", "clone", "clone3", "trace another process", "signal another process", "signal a thread of another process",
    "signal everybody", "open another process", "outlive the node", "become root", "a new user namespace", "mount", "chroot",
    "the kernel's keys", "bpf", "a 32-bit system call",
]  # fmt: skip
ALLOWED = ["read the model", "import a library", "a thread", "a signal to itself", "anonymous memory"]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("home")
    secret, model, scratch = home / "identity.key", home / "model.onnx", home / "agent-1"
    secret.write_text("secret")
    secret.chmod(0o600)
    model.write_bytes(b"model")
    scratch.mkdir()
    policy = AgentPolicy(
        mode="require", memory=1 << 30, scratch=str(scratch), read=(*without(library_folders(), home), str(model)), open_files=64
    )
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.attempts", msgspec.json.encode(policy).decode(), str(secret), str(bystander.pid)],
            capture_output=True,
            timeout=60,
        )
    finally:
        bystander.kill()
        bystander.wait()
        assert bystander.stdin is not None
        bystander.stdin.close()
    assert secret.read_text() == "secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in home.iterdir()) == ["agent-1", "identity.key", "model.onnx"]
    assert not list(scratch.iterdir())
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_everything_is_tried_and_every_protection_is_in_force(told: dict[str, Any]) -> None:
    assert {*NAMES, *(f"allowed: {n}" for n in ALLOWED)} == set(told["attempts"])
    assert all(told["report"].values())


@pytest.mark.parametrize("name", NAMES)
def test_refused(told: dict[str, Any], name: str) -> None:
    answer = told["attempts"][name]
    assert "errno" in answer, answer
    # refused by the sandbox, not failed for a reason of its own
    assert answer["errno"].split()[0] in ("EPERM", "EACCES", "ENOSYS", "ENOMEM", "EMFILE", "EFBIG", "EROFS"), answer


@pytest.mark.parametrize("name", ALLOWED)
def test_inference_can_still_do_what_it_needs(told: dict[str, Any], name: str) -> None:
    assert "done" in told["attempts"][f"allowed: {name}"], told["attempts"]


ASKS = """
import sys, os
from tests.support.attempts import attempts, told
from dimnode.daemon.sandbox.policy import AgentPolicy
name = sys.argv[2]
print(told(attempts(AgentPolicy(memory=1 << 30, scratch=os.getcwd(), read=(sys.argv[1],)), sys.argv[1], os.getppid())[name]))
"""


@pytest.mark.parametrize("name", ["read a secret", "a UDP socket", "fork", "a file in memory", "change the secret's mode"])
def test_the_same_attempts_succeed_without_the_sandbox(tmp_path: Path, name: str) -> None:
    """Or the tests above could not fail."""
    secret = tmp_path / "identity.key"
    secret.write_text("secret")
    done = subprocess.run([sys.executable, "-c", ASKS, str(secret), name], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert "done" in done.stdout, done.stderr
    assert os.path.exists(secret)


ORDINARY = """
import os, sys, colorsys
from tests.support import attempts
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
attempts.main()
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="the other tests run as an ordinary user then")
def test_an_ordinary_user_is_confined_as_well(tmp_path: Path) -> None:
    home = Path(tempfile.mkdtemp(prefix="dim-home-"))  # pytest's own folders are closed to others
    try:
        secret, model, scratch = home / "identity.key", home / "model.onnx", home / "agent-1"
        secret.write_text("secret")
        model.write_bytes(b"model")
        scratch.mkdir()
        for path in (home, secret, model, scratch):
            os.chown(path, 65534, 65534)
        policy = AgentPolicy(mode="require", memory=1 << 30, scratch=str(scratch), read=(*library_folders(), str(model)), open_files=64)
        done = subprocess.run(
            [sys.executable, "-c", ORDINARY, msgspec.json.encode(policy).decode(), str(secret), str(os.getpid())],
            capture_output=True,
            timeout=60,
            cwd=Path(__file__).parents[3],
        )
        told = json.loads(done.stdout)
        assert all(told["report"].values())
        assert [name for name in NAMES if "errno" not in told["attempts"][name]] == []
        assert "done" in told["attempts"]["allowed: read the model"]
        assert "done" in told["attempts"]["allowed: a thread"]
        assert secret.read_text() == "secret"
    finally:
        shutil.rmtree(home)


async def test_agents_of_a_pool_are_confined_as_the_attempts_were(tmp_path: Path) -> None:
    async with running_pool(tmp_path, sandbox="require") as pool:
        await pool.warm_up(fast(tmp_path))
        assert pool.confinement.complete
        pid = pids(pool)[0]
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
        assert status["NoNewPrivs"].strip() == "1"
        assert status["Seccomp"].strip() == "2"
        assert {status[c].strip() for c in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
        assert len(Path(f"/proc/{pid}/net/dev").read_text().splitlines()) <= 3  # headings and loopback, which is down
        held = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        assert sum(name.startswith("socket:") for name in held) == 1
        assert {name for name in held if not name.startswith("socket:")} == {"/dev/null"}
