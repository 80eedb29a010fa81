"""Each verb: what it asks, what it prints, how it exits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dimnode.cli.doctor import graphics
from dimnode.daemon.gpus import Gpu
from dimnode.errors import FailedPrecondition, FieldProblem, InvalidArgument, NotFound, NotReady, Unavailable
from dimnode.home import Home
from loaders.registry import ENTRIES
from tests.unit.cli.conftest import Shell

FORM = {"pattern": "chained", "config": {"pipeline": [{"step": 1, "model_id": "m"}]}}
NODE_VERBS = [
    ("status",),
    ("nodes",),
    ("stats",),
    ("invite",),
    ("events",),
    ("model", "list"),
    ("cabinet", "list"),
    ("electorate", "list"),
    ("ipfs", "pins"),
    ("ipfs", "stat"),
    ("ipfs", "gc"),
    ("ipfs", "resolve", "registry"),
    ("ipfs", "resolve", "jobs"),
    ("ipfs", "resolve", "jobs/job-1"),
    ("ipfs", "get", "bafk"),
    ("ipfs", "pin", "bafk"),
    ("ipfs", "unpin", "bafk"),
    ("ipfs", "export", "bafk", "--out", "x.car"),
]
JOB_VERBS = [("jobs",), ("watch", "job-1"), ("cancel", "job-1"), ("describe", "job-1"), ("result", "job-1")]


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(FORM))
    return str(path)


@pytest.mark.parametrize("argv", NODE_VERBS + JOB_VERBS)
def test_prints_for_people_and_one_json_document(shell: Shell, argv: tuple[str, ...]) -> None:
    shown = shell(*argv)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.strip()
    assert shell.json(*argv)


@pytest.mark.parametrize("argv", NODE_VERBS + JOB_VERBS)
def test_without_a_node_exit_is_3(tmp_path: Path, shell: Shell, argv: tuple[str, ...]) -> None:
    lonely = Shell(Home(tmp_path / "other"), shell.client, shell.targets)
    document = lonely.json(*argv, exit_code=3)
    assert document["error"]["code"] == "UNAVAILABLE"
    assert "dimnode start" in document["error"]["hint"]


def test_events_of_a_kind_and_as_they_come(shell: Shell) -> None:
    assert [e["event"] for e in shell.json("events")] == ["accepted", "seat_won"]
    assert [e["event"] for e in shell.json("events", "--jobs")] == ["accepted"]
    lines = [json.loads(line) for line in shell("events", "--follow", "--json").stdout.splitlines()]
    assert [line["kind"] for line in lines] == ["jobs", "nodes"]
    assert "seat_won: node q, seat 0, term 3" in shell("events", "--nodes", "--follow").stdout
    assert [asked[1:] for asked in shell.client.asked] == [
        (([],), {"follow": False}), ((["jobs"],), {"follow": False}), (([],), {"follow": True}), ((["nodes"],), {"follow": True}),
    ]  # fmt: skip


def test_node_verbs_use_the_nodes_socket_and_job_verbs_the_orchestrators(shell: Shell) -> None:
    shell("status")
    shell("jobs")
    shell("jobs", "--orchestrator", "h:1", "--orchestrator", "i:2, unix:/x")
    assert shell.targets == ["unix:/n", ("unix:/o",), ("h:1", "i:2", "unix:/x")]
    assert shell.client.closed == 3


@pytest.mark.parametrize("address", ["h", "h:", "", "h:1,", "h:port"])
def test_an_orchestrator_that_is_no_address_is_wrong_usage(shell: Shell, address: str) -> None:
    assert shell.json("jobs", "--orchestrator", address, exit_code=2)["error"]["code"] == "INVALID_ARGUMENT"
    assert shell.targets == []


@pytest.mark.parametrize("argv", [("watch", "j"), ("result", "j"), ("cancel", "j"), ("describe", "j"), ("stats", "n")])
def test_unknown_job_or_node_is_3(shell: Shell, argv: tuple[str, ...]) -> None:
    shell.client.fails = NotFound("there is no such thing")
    assert shell(*argv).exit_code == 3


def test_failures_are_1_and_errors_carry_code_hint_and_fields(shell: Shell, spec: str) -> None:
    shell.client.fails = NotReady("running", hint="Wait.")
    done = shell("result", "j")
    assert done.exit_code == 1
    assert "Wait." in done.stderr
    assert not done.stdout
    shell.client.fails = InvalidArgument("bad", fields=(FieldProblem("config.x", "is not known"),))
    document = shell.json("submit", spec, exit_code=1)
    assert document["error"]["fields"] == [{"field": "config.x", "rule": "is not known"}]
    shell.client.fails = NotFound("no model m")
    assert shell("submit", spec).exit_code == 1
    shell.client.fails = Unavailable("no orchestrator")
    assert shell("submit", spec).exit_code == 3
    shell.client.fails = FailedPrecondition("no")
    assert shell("model", "add", spec).exit_code == 1


@pytest.mark.parametrize(
    "argv", [("sumbit",), ("submit",), ("stats", "--bogus"), ("watch",), ("jobs", "--limit", "0"), ("model", "add", "/no/such/file")]
)
def test_wrong_usage_is_2(shell: Shell, argv: tuple[str, ...]) -> None:
    assert shell(*argv).exit_code == 2


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"a": NaN, }'])
def test_spec_that_is_not_a_json_object_is_2(shell: Shell, tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    document = shell.json("submit", str(path), exit_code=2)
    assert "bad.json" in document["error"]["message"]
    assert shell("submit", str(tmp_path / "none.json")).exit_code == 2
    assert shell.client.asked == []


def test_submit_prints_the_job_id(shell: Shell, spec: str) -> None:
    assert shell("submit", spec).stdout.strip() == "job-1"
    assert shell.json("submit", spec) == {"job_id": "job-1", "copies": 1}
    assert shell.json("submit", "-", stdin=json.dumps(FORM))["job_id"] == "job-1"
    assert shell.client.asked[0][1] == (FORM,)


def test_dry_run_accepts_nothing(shell: Shell, spec: str) -> None:
    assert shell.json("submit", spec, "--dry-run")["accepted"] is True
    assert [name for name, *_ in shell.client.asked] == ["dry_run"]


def test_submit_with_data(shell: Shell, spec: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((2, 2), np.float32))
    shell("submit", spec, "--data", str(tmp_path / "d.npz"))
    (tmp_path / "d.json").write_text(json.dumps({"x": {"dtype": "float32", "shape": [1], "data": [1]}}))
    shell("submit", spec, "--data", str(tmp_path / "d.json"))
    first, second = (args[0]["client_data"]["x"] for _, args, _ in shell.client.asked)
    assert (first.shape, second.shape) == ((2, 2), (1,))


def test_data_that_cannot_be_used_is_2(shell: Shell, spec: str, tmp_path: Path) -> None:
    for name, content in (("d.npz", b"no"), ("d.json", b'{"x": 1}'), ("d.txt", b"")):
        (tmp_path / name).write_bytes(content)
        assert shell("submit", spec, "--data", str(tmp_path / name)).exit_code == 2
    np.savez(tmp_path / "o.npz", x=np.array([{}], dtype=object))
    assert shell("submit", spec, "--data", str(tmp_path / "o.npz")).exit_code == 2
    twice = tmp_path / "twice.json"
    twice.write_text(json.dumps({**FORM, "client_data": {}}))
    np.savez(tmp_path / "ok.npz", x=np.ones(1))
    assert shell("submit", str(twice), "--data", str(tmp_path / "ok.npz")).exit_code == 2


def test_wait_keeps_progress_off_stdout(shell: Shell, spec: str) -> None:
    done = shell("submit", spec, "--wait", "--json")
    document = json.loads(done.stdout)
    assert document["outputs"]["y"] == {"dtype": "float64", "shape": [2], "data": [1.5, "NaN"]}
    assert document["outputs"]["big"]["cid"] == "bafkbig"
    assert document["tasks"][0]["receipt"] == "01"
    assert "running" in done.stderr


def test_wait_for_a_job_that_fails_is_1(shell: Shell, spec: str) -> None:
    shell.client.status_ = "failed"
    assert shell.json("submit", spec, "--wait", exit_code=1)["status"] == "failed"
    assert shell("watch", "job-1").exit_code == 1


def test_result_to_files(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "r.npz"
    document = shell.json("result", "job-1", "--out", str(out))
    assert document["outputs"]["big"] == {"dtype": "float64", "shape": [20]}
    with np.load(out, allow_pickle=False) as found:
        assert found["big"].tolist() == list(range(20))
        assert found["text"].tolist() == ["a", "b"]
    assert shell("result", "job-1", "--out", str(tmp_path / "r.json")).exit_code == 0
    assert json.loads((tmp_path / "r.json").read_text())["text"]["data"] == ["a", "b"]
    assert shell("result", "job-1", "--out", str(tmp_path / "r.txt")).exit_code == 2


def test_model_add_by_the_node_or_by_an_orchestrator(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"x" * 10)
    shell.json("model", "add", str(path))
    name, args, kwargs = shell.client.asked[0]
    assert (name, args, kwargs["id"]) == ("add_model_file", (str(path),), "net")
    shell.json("model", "add", str(path), "--id", "a", "--orchestrator", "h:1")
    assert shell.client.asked[2][1:] == (("bafk",), {"id": "a", "licence": "", "batch_axis": None, "form": ""})


def test_what_an_author_says_of_a_model_is_sent_along(shell: Shell, tmp_path: Path) -> None:
    path, form, pair = tmp_path / "net.mlxfn", tmp_path / "form.json", tmp_path / "pair.npz"
    path.write_bytes(b"x" * 10)
    form.write_text('{"id": "vad", "golden": {"rtol": 0.5}}')
    np.savez(pair, **{"in.x": np.array([1, 2], np.int32), "out.y": np.array(["a"])})
    shell.json("model", "add", str(path), "--form", str(form), "--golden", str(pair), "--no-trial", "--sign")
    _, _, kwargs = shell.client.asked[0]
    assert (kwargs["id"], kwargs["sign"]) == ("vad", True)
    said = json.loads(kwargs["form"])
    assert said["golden"]["inputs"]["x"] == {"dtype": "int32", "shape": [2], "data": [1, 2]}
    assert (said["golden"]["outputs"]["y"]["data"], said["golden"]["rtol"], said["trial"]) == (["a"], 0.5, False)
    (tmp_path / "folder").mkdir()
    shell.json("model", "add", str(tmp_path / "folder"))
    assert shell.client.asked[1][1] == (str(tmp_path / "folder"),)
    np.savez(tmp_path / "odd.npz", x=np.zeros(1))
    np.savez(tmp_path / "evil.npz", **{"in.x": np.array([{}], dtype=object)})
    (tmp_path / "list.json").write_text("[]")
    for option in (("--golden", str(form)), ("--golden", str(tmp_path / "odd.npz")), ("--golden", str(tmp_path / "evil.npz")),
                   ("--form", str(pair)), ("--form", str(tmp_path / "list.json"))):  # fmt: skip
        assert shell("model", "add", str(path), *option).exit_code == 2
    assert shell("model", "add", str(path), "--sign", "--orchestrator", "h:1").exit_code == 2


def test_models_are_described_checked_and_removed(shell: Shell) -> None:
    told = shell("model", "describe", "m").stdout
    assert "x: float32[n, 2]" in told
    assert "1 MiB of memory, a GPU" in told
    assert "works here: its golden answer; 1 MiB of memory; its inputs and outputs are not" in shell("model", "check", "m").stdout
    assert "removed m  bafy" in shell("model", "remove", "m").stdout
    assert [a[:2] for a in shell.client.asked] == [("describe_model", ("m",)), ("check_model", ("m",)), ("remove_model", ("m",))]


def test_cabinet_add_sends_path_and_policy(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("a\n1\n")
    (tmp_path / "p.json").write_text('{"models": ["m"]}')
    shell.json("cabinet", "add", "c", str(tmp_path / "d.csv"), "--policy", str(tmp_path / "p.json"))
    assert shell.client.asked[0][1] == ("c", str(tmp_path / "d.csv"), '{"models": ["m"]}')
    (tmp_path / "p.json").write_text("{")
    assert shell("cabinet", "add", "c", str(tmp_path / "d.csv"), "--policy", str(tmp_path / "p.json")).exit_code == 2


def test_the_electorate_is_shown_and_changed(shell: Shell) -> None:
    listed = shell.json("electorate", "list")
    assert [v["peer_id"] for v in listed["voters"]] == ["p1", "p2"]
    shown = shell("electorate", "list").stdout
    assert "2 of 2 voters decide" in shown
    assert "fewer than that answer" in shown
    assert "add a third" in shown
    assert [(v["peer_id"], v["name"]) for v in shell.json("electorate", "add", "p9")["voters"]] == [("p9", "add")]
    assert shell.json("electorate", "remove", "p9")["voters"][0]["name"] == "remove"
    assert shell.json("electorate", "remove", "nobody", exit_code=1)["error"]["code"] == "NOT_FOUND"


def test_doctor_tells_of_node_and_settings(shell: Shell) -> None:
    checks = {c["check"]: c["ok"] for c in shell.json("doctor", exit_code=1)["checks"]}
    assert checks["node"]
    assert checks["settings"]
    assert not checks["orchestrators"]
    assert not checks["electorate"]
    shell.home.clear_control()
    done = shell("doctor")
    assert "orchestrator.listen" in done.stdout
    shell.home.config_path.write_text("[auth]\nmode = 'token'\n")
    assert shell("doctor").exit_code == 1
    shell.home.config_path.write_text("[x]\n")
    assert shell("doctor").exit_code == 2


def test_doctor_tells_of_every_loader_and_what_it_lacks(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    lacks = {"pt2": ("torch",), "mlx-lm": ("mlx_lm", "jinja2"), "builtin": ("cv2",)}
    monkeypatch.setattr("loaders.registry.missing_modules", lambda format: lacks.get(format, ()))
    (found,) = (c for c in shell.json("doctor", exit_code=1)["checks"] if c["check"] == "loaders")
    told, lacking = found["said"].split(" (", 1)
    assert set(told.split(", ")) | set(lacks) == set(ENTRIES)
    assert lacking == "pt2 lacks torch; mlx-lm lacks mlx_lm, jinja2; builtin lacks cv2)"
    assert found["advice"] == "pip install 'dimnode[torch]' 'dimnode[text]' 'dimnode[vision]'"
    assert found["ok"]
    lacks["onnx"] = ("onnxruntime",)
    (found,) = (c for c in shell.json("doctor", exit_code=1)["checks"] if c["check"] == "loaders")
    assert not found["ok"]


@pytest.mark.parametrize(
    ("wanted", "cards", "able", "ok", "said"),
    [
        ("auto", [], [], True, "none"),
        ("auto", [Gpu("T4", 16 << 30)], ["onnx", "pt2"], True, "T4 (16384 MiB); for onnx, pt2"),
        ("auto", [Gpu("M3", 0)], [], True, "M3; no framework that is installed here is built for it"),
        ("cpu", [Gpu("M3", 0)], [], True, "M3; not used, by daemon.device"),
        ("cuda", [], ["onnx"], False, "none; daemon.device is cuda, which is not to be had here"),
        ("cuda", [Gpu("T4", 16 << 30)], [], False, "T4 (16384 MiB); daemon.device is cuda, which is not to be had here"),
    ],
)
def test_doctor_tells_of_cards_and_who_can_use_them(wanted: str, cards: list[Gpu], able: list[str], ok: bool, said: str) -> None:
    found = graphics(wanted, cards, able)
    assert (found.ok, found.said, bool(found.advice)) == (ok, said, not ok)


def test_ipfs_verbs_hand_the_node_absolute_paths_and_all_options(shell: Shell, spec: str) -> None:
    here = str(Path.cwd())
    shell("ipfs", "add", spec, "--no-pin")
    shell("ipfs", "get", "bafk")
    shell("ipfs", "get", "bafk", "--out", "sub/x")
    shell("ipfs", "pin", "bafk", "--direct", "--reason", "mine")
    shell("ipfs", "import", spec, "--reason", "theirs")
    shell("ipfs", "export", "a", "b", "--out", "x.car")
    assert shell.client.asked == [
        ("add_content", (spec,), {"pin": False, "reason": ""}),
        ("get_content", ("bafk", f"{here}/bafk"), {}),
        ("get_content", ("bafk", f"{here}/sub/x"), {}),
        ("pin_content", ("bafk",), {"direct": True, "reason": "mine"}),
        ("import_archive", (spec,), {"pin": True, "reason": "theirs"}),
        ("export_archive", (("a", "b"), f"{here}/x.car"), {}),
    ]


def test_published_state_is_asked_for_page_by_page(shell: Shell) -> None:
    shell("ipfs", "resolve", "jobs", "--after", "job-1", "--limit", "5")
    assert shell.client.asked == [("resolve", ("jobs",), {"after": "job-1", "limit": 5})]
    assert shell("ipfs", "resolve", "jobs/none").exit_code == 3
    assert shell("ipfs", "resolve", "jobs", "--limit", "0").exit_code == 2


def test_content_that_nobody_has_is_a_failure(shell: Shell) -> None:
    shell.client.fails = NotFound("no reachable node has it")
    assert shell("ipfs", "get", "bafk").exit_code == 1


@pytest.mark.parametrize("argv", [("add",), ("add", "/no/such/file"), ("export", "x"), ("export", "--out", "x"), ("pin",), ("nothing",)])
def test_wrong_usage_of_ipfs_verbs_is_2(shell: Shell, argv: tuple[str, ...]) -> None:
    assert shell("ipfs", *argv).exit_code == 2
    assert not shell.client.asked


def test_text_is_shown_as_it_comes_and_cannot_command_the_terminal(shell: Shell, spec: str) -> None:
    def piece(attempt: int, offset: int, text: str, row: int = 0) -> dict[str, Any]:
        return {"partial": {"task": "s1", "attempt": attempt, "row": row, "offset": offset, "text": text}}

    shell.client.texts = [piece(1, 0, "Once "), piece(1, 5, "\x1b[2Jupon"), piece(2, 0, "Once\n"), piece(2, 0, "Two", row=1)]
    done = shell("submit", spec, "--wait", "--json")
    assert (
        "[s1, text 1]\nOnce \N{REPLACEMENT CHARACTER}[2Jupon\n[s1, text 1, begun anew: attempt 2]\nOnce\n[s1, text 2]\nTwo\n" in done.stderr
    )
    json.loads(done.stdout)
    assert "Two\n" in shell("watch", "job-1").stderr
