"""What hostile code in an agent might try. Run as ``python -m tests.support.attempts POLICY-JSON SECRET FOREIGN-PID``: goes into the
sandbox, tries everything, and prints for each attempt how it went, as one JSON document."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from dimnode.daemon.sandbox.confine import confine
from dimnode.daemon.sandbox.policy import AgentPolicy

libc = ctypes.CDLL(None, use_errno=True)


def called(number: int, *args: object) -> int:
    result = libc.syscall(ctypes.c_long(number), *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def fill(path: str) -> None:
    with open(path, "wb") as f:
        f.write(b"x" * (1 << 20))


def by_link(secret: str, scratch: str) -> str:
    link = os.path.join(scratch, "link")
    os.symlink(secret, link)
    return Path(link).read_text()


def hungry(policy: AgentPolicy) -> int:
    return len(bytearray(policy.memory + (64 << 20)))


def many_files() -> None:
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(10_000)]
    raise AssertionError(len(held))


def thread_works() -> str:
    out: list[str] = []
    thread = threading.Thread(target=lambda: out.append("ran"))
    thread.start()
    thread.join()
    return out[0]


def attempts(policy: AgentPolicy, secret: str, pid: int) -> dict[str, Callable[[], object]]:
    folder = os.path.dirname(secret)
    return {
        # allowed
        "allowed: read the model": lambda: len(Path(policy.read[-1]).read_bytes()),
        "allowed: import a library": lambda: __import__("colorsys").__name__,
        "allowed: a thread": thread_works,
        "allowed: a signal to itself": lambda: os.kill(os.getpid(), 0),
        "allowed: anonymous memory": lambda: mmap.mmap(-1, 1 << 20).close(),
        # files
        "read a secret": lambda: Path(secret).read_text(),
        "list the home": lambda: os.listdir(folder),
        "list the root": lambda: os.listdir("/"),
        "read the password file": lambda: Path("/etc/passwd").read_text(),
        "read through a link": lambda: by_link(secret, policy.scratch),
        "read through /proc/self/root": lambda: Path(f"/proc/self/root{secret}").read_text(),
        "read another process's environment": lambda: Path(f"/proc/{pid}/environ").read_bytes(),
        "read another process's memory": lambda: Path(f"/proc/{pid}/mem").open("rb"),
        "write beside the secret": lambda: fill(secret + ".new"),
        "write to the secret": lambda: open(secret, "a").close(),
        "write in the temporary folder": lambda: fill("/tmp/dim-attempt"),
        "write in its own folder": lambda: fill(os.path.join(policy.scratch, "x")),
        "make an empty file": lambda: os.close(os.open(os.path.join(policy.scratch, "e"), os.O_CREAT | os.O_WRONLY)),
        "make a folder": lambda: os.mkdir(os.path.join(policy.scratch, "d")),
        "remove the secret": lambda: os.unlink(secret),
        "rename the secret": lambda: os.rename(secret, secret + ".old"),
        "change the secret's mode": lambda: os.chmod(secret, 0o666),
        "change the secret's owner": lambda: os.chown(secret, 1, 1),
        "change the secret's times": lambda: os.utime(secret),
        "change the model": lambda: open(policy.read[-1], "r+b").close(),
        # memory without a limit on it
        "a file in memory": lambda: os.memfd_create("x"),
        "shared memory": lambda: called(29 if os.uname().machine == "x86_64" else 194, 0, ctypes.c_size_t(1 << 20), 0o1600),
        "more memory than granted": lambda: hungry(policy),
        "many open files": many_files,
        "a core dump": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20)),
        "higher limits": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
        # network
        "a TCP socket": lambda: socket.create_connection(("127.0.0.1", 9), 1),
        "a UDP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW),
        "a Unix socket": lambda: socket.socket(socket.AF_UNIX),
        "a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "a socket pair": socket.socketpair,
        "io_uring": lambda: called(425, 1, ctypes.create_string_buffer(120)),
        # processes
        "fork": os.fork,
        "vfork and exec": lambda: subprocess.run(["/bin/true"], check=True),
        "exec": lambda: os.execv("/bin/true", ["/bin/true"]),
        "a shell": lambda: _fails(os.system("true")),
        "clone": lambda: called(56 if os.uname().machine == "x86_64" else 220, 17, 0, 0, 0, 0),
        "clone3": lambda: called(435, ctypes.create_string_buffer(88), ctypes.c_size_t(88)),
        "trace another process": lambda: called(101 if os.uname().machine == "x86_64" else 117, 16, pid, 0, 0),
        "signal another process": lambda: os.kill(pid, 0),
        "signal a thread of another process": lambda: called(234 if os.uname().machine == "x86_64" else 131, pid, pid, 0),
        "signal everybody": lambda: os.kill(-1, 0),
        "open another process": lambda: os.pidfd_open(pid),
        "outlive the node": lambda: called(157 if os.uname().machine == "x86_64" else 167, 1, 0),
        # privileges
        "become root": lambda: os.setresuid(0, 0, 0),
        "a new user namespace": lambda: called(272 if os.uname().machine == "x86_64" else 97, 0x10000000),
        "mount": lambda: called(165 if os.uname().machine == "x86_64" else 40, b"none", b"/tmp", b"tmpfs", 0, 0),
        "chroot": lambda: os.chroot("/tmp"),
        "the kernel's keys": lambda: called(250 if os.uname().machine == "x86_64" else 219, 0, 0, 0),
        "bpf": lambda: called(321 if os.uname().machine == "x86_64" else 280, 0, 0, 0),
        "a 32-bit system call": lambda: called(0x40000000 + 41, 2, 1, 0) if os.uname().machine == "x86_64" else called(10_000),
    }


def _fails(status: int) -> None:
    if status:
        raise OSError(errno.EPERM, "no shell")


def told(attempt: Callable[[], object]) -> dict[str, object]:
    try:
        return {"done": repr(attempt())}
    except OSError as e:
        return {"errno": errno.errorcode.get(e.errno or 0, str(e.errno))}
    except ValueError as e:
        return {"errno": f"EPERM ({e})"}  # resource.setrlimit says so
    except MemoryError:
        return {"errno": "ENOMEM"}


def main() -> None:
    policy = msgspec.json.decode(sys.argv[1], type=AgentPolicy)
    signal.alarm(60)
    os.chdir(policy.scratch)
    report = confine(policy)
    tried = {name: told(attempt) for name, attempt in attempts(policy, sys.argv[2], int(sys.argv[3])).items()}
    print(json.dumps({"report": msgspec.to_builtins(report), "attempts": tried}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
