"""``verify``: receipts are checked with nothing but public keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dimnode.cli.receipts import check_receipts
from dimnode.domain import codec
from dimnode.domain.record import Attempt, Ballot, Receipt, SignedEntry
from dimnode.security.signing import sign_entry
from p2p.identity import Identity
from tests.unit.cli.conftest import Shell

NODE = Identity(bytes(range(32)))


def entry(node: Identity = NODE, **changes: Any) -> SignedEntry:
    receipt = Receipt(
        job="job-1", task="a", attempt=1, node=changes.pop("names", node.peer_id), model_cid="bafy", inputs={}, outputs={},
        started=1.0, ended=2.0, cost=1.0,
    )  # fmt: skip
    status: Any = changes.pop("status", "completed")
    body = Attempt(job="job-1", ballot=Ballot(1, "p", "b"), task="a", attempt=1, task_key="k", status=status, receipt=receipt)
    return sign_entry(body, node)


def document(signed: SignedEntry | bytes | str | None, **task: Any) -> dict[str, Any]:
    raw = codec.encode(signed) if isinstance(signed, SignedEntry) else signed
    base = {"task_id": "job-1:a:1", "node": "anna", "model_cid": "bafy", "status": "completed", "receipt": raw}
    return {"job_id": "job-1", "tasks": [{**base, **task}]}


def test_good_receipt_in_bytes_or_text() -> None:
    good = codec.encode(entry())
    assert check_receipts(document(good))["ok"]
    assert check_receipts(document(good.hex()))["ok"]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (document(None), "no receipt"),
        (document("zz"), "damaged"),
        (document(b"\x00"), "damaged"),
        (document(entry(), model_cid="other"), "model_cid"),
        (document(entry(), status="failed"), "status"),
        ({**document(entry()), "job_id": "job-2"}, "job"),
        (document(entry(names="somebody")), "another node"),
        (document(SignedEntry(entry().payload, NODE.peer_id, bytes(64))), "signature"),
        (document(SignedEntry(entry().payload, Identity(bytes(32)).peer_id, entry().signature)), "signature"),
    ],
)
def test_bad_receipts_say_why(made: dict[str, Any], words: str) -> None:
    report = check_receipts(made)
    assert not report["ok"]
    assert words in report["tasks"][0]["reason"]


def test_nothing_to_check_is_not_ok() -> None:
    assert not check_receipts({"job_id": "x", "tasks": []})["ok"]


def test_verb_reads_a_result_file(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document(codec.encode(entry()).hex())))
    assert shell.json("verify", str(path))["ok"] is True
    assert shell("verify", "job-1").exit_code == 1
