"""The sandbox's decisions: the filter's program, what may be read, what is reported."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dimnode.daemon.sandbox import landlock, macos, seccomp
from dimnode.daemon.sandbox.policy import AgentPolicy, library_folders, without
from dimnode.daemon.sandbox.report import Confinement
from dimnode.daemon.sandbox.syscalls import ALLOWED, CHECKED, REFUSED

PID = 4711
EPERM, ENOSYS = seccomp.ERRNO | errno.EPERM, seccomp.ERRNO | errno.ENOSYS


def run(program: list[seccomp.Instruction], number: int, *args: int, arch: int = 0xC000003E) -> int:
    """The kernel's interpreter, as far as the program uses it."""
    data = {0: number, 4: arch}
    for i in range(6):
        value = args[i] if i < len(args) else 0
        data[16 + 8 * i], data[20 + 8 * i] = value & 0xFFFFFFFF, value >> 32
    at = accumulator = 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == seccomp.LOAD:
            accumulator = data[k]
        elif code == seccomp.RETURN:
            return k
        else:
            met = {seccomp.EQUAL: accumulator == k, seccomp.AT_LEAST: accumulator >= k, seccomp.ANY_BIT: bool(accumulator & k)}[code]
            at += yes if met else no


@pytest.mark.parametrize(("machine", "column", "arch"), [("x86_64", 0, 0xC000003E), ("aarch64", 1, 0xC00000B7)])
def test_the_filter_does_what_the_tables_say(machine: str, column: int, arch: int) -> None:
    program = seccomp.build(machine, PID)
    assert len(program) < 4096
    for table, verdict in ((ALLOWED, seccomp.ALLOW), (REFUSED, EPERM)):
        for name, numbers in table.items():
            if numbers[column] is not None:
                assert run(program, numbers[column], arch=arch) == verdict, name
    assert run(program, 435, arch=arch) == ENOSYS  # clone3: libraries fall back to clone
    assert run(program, 9999, arch=arch) == ENOSYS
    assert run(program, 1, arch=0x40000003) == seccomp.KILL
    names = [*ALLOWED, *CHECKED, *REFUSED]
    assert len(names) == len(set(names))


def test_arguments_decide_where_they_matter() -> None:
    program = seccomp.build("x86_64", PID)
    nr = {name: CHECKED[name][0] or 0 for name in CHECKED}
    assert run(program, nr["clone"], 0x3D0F00) == seccomp.ALLOW  # a thread
    assert run(program, nr["clone"], 17) == EPERM
    assert run(program, nr["kill"], PID, 6) == seccomp.ALLOW
    assert run(program, nr["tgkill"], PID + 1, PID, 6) == EPERM
    assert run(program, nr["kill"], 0xFFFFFFFF) == EPERM
    assert run(program, nr["prctl"], 15) == seccomp.ALLOW
    assert run(program, nr["prctl"], 1) == EPERM
    assert run(program, nr["prlimit64"], 0, 7, 0) == seccomp.ALLOW
    assert run(program, nr["prlimit64"], 0, 7, 1 << 40) == EPERM
    assert run(program, nr["prlimit64"], 0, 7, 0x7F00) == EPERM
    assert run(program, nr["ioctl"], 0, 0x5401) == seccomp.ALLOW
    assert run(program, nr["ioctl"], 0, 0x5412) == EPERM  # TIOCSTI
    assert run(program, 0x40000000 + 41) == EPERM
    assert run(seccomp.build("x86_64", PID, devices=True), nr["ioctl"], 0, 0xC0384627) == seccomp.ALLOW
    writing = seccomp.build("x86_64", PID, writing=True)
    assert run(writing, REFUSED["mkdir"][0] or 0) == seccomp.ALLOW
    assert run(writing, REFUSED["chmod"][0] or 0) == EPERM


def test_a_home_within_the_libraries_stays_hidden(tmp_path: Path) -> None:
    for name in ("venv/lib/a", "venv/home/blocks", "venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    home = tmp_path / "venv" / "home"
    roots = [str(tmp_path / "venv"), str(home / "blocks"), "/usr/lib"]
    assert without(roots, home) == (str(tmp_path / "venv/bin"), str(tmp_path / "venv/lib"), "/usr/lib")
    assert without(roots[2:], home) == ("/usr/lib",)


def test_libraries_are_the_interpreters_and_dims_own_code_but_no_checkout() -> None:
    folders = library_folders()
    repository = str(Path(__file__).resolve().parents[3])
    assert f"{repository}/dimnode" in folders
    assert f"{repository}/loaders" in folders
    assert repository not in folders
    assert not {"/", "/home", "/root", "/etc", "/tmp"} & set(folders)


def test_newer_kernels_take_more_away() -> None:
    assert landlock.handled(1) == ((1 << 13) - 1, 0, 0)
    assert landlock.handled(3)[0] & landlock.TRUNCATE
    assert landlock.handled(4)[1] == 3
    assert landlock.handled(7)[2] == 3


def test_a_report_names_what_is_missing() -> None:
    report = Confinement(files=("landlock 7",), network=("seccomp", "namespace"), limits=("rlimits",))
    assert report.missing() == ("processes", "privileges")
    assert not report.complete
    assert report.summary()[1] == "network: seccomp + namespace"


def test_the_profile_for_macos_lets_nothing_out() -> None:
    policy = AgentPolicy(memory=1, read=('/models/a"b.onnx',), scratch="/home/agents/1")
    text = macos.profile(policy, "/usr/bin/python3")
    assert "(deny default)" in text
    assert "(deny network*)" in text
    assert r'(subpath "/models/a\"b.onnx")' in text
    assert "file-write*" not in text
    assert macos.command(policy, ["/usr/bin/python3", "-m", "x"])[:2] == ["/usr/bin/sandbox-exec", "-p"]


def test_the_profile_for_macos_knows_an_interpreter_behind_a_link(tmp_path: Path) -> None:
    """As in a virtual environment: the profile must name the program itself, and let it find out where its packages are."""
    (tmp_path / "python3.11").touch()
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    link = tmp_path / "venv" / "bin" / "python"
    link.symlink_to(tmp_path / "python3.11")
    text = macos.profile(AgentPolicy(memory=1), str(link))
    real = (tmp_path / "python3.11").resolve()
    assert f'(allow process-exec (literal "{link}") (literal "{real}"))' in text
    assert f'(literal "{tmp_path / "venv" / "pyvenv.cfg"}")' in text
