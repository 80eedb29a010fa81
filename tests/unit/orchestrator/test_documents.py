"""Jobs and results in their outside form."""

from __future__ import annotations

from typing import Any

import pytest

from dimnode.core.job_record import Record
from dimnode.domain import codec
from dimnode.domain.record import Attempt, Receipt
from dimnode.orchestrator.documents import job_document, result_document, task_documents
from p2p.ipfs.cid import DAG_CBOR, compute
from tests.support import entries as e


@pytest.mark.parametrize("result", [codec.encode({"outputs": {}}), codec.encode({"tasks": "none"}), codec.encode([1]), b"\xff"])
def test_a_result_that_another_version_made_without_tasks_has_none(result: bytes) -> None:
    record = Record(e.JOB, [e.core(), e.claim(1), e.outcome(1, "completed", result=result)])
    document = job_document(record, str)
    assert (document["status"], document["tasks"]) == ("completed", [])


def test_a_result_without_outputs_has_none() -> None:
    assert result_document({"job_id": "j", "tasks": []}, None)["outputs"] == {}


def test_a_receipt_is_told_with_its_cid() -> None:
    receipt = Receipt(job=e.JOB, task="t", attempt=1, node="x", model_cid="m", inputs={}, outputs={}, started=1.0, ended=2.0, cost=1.0)
    body: dict[str, Any] = {"job": e.JOB, "ballot": e.ballot(1), "task": "t", "attempt": 1, "task_key": "k", "status": "completed"}
    attempt = e.signed(Attempt(**body, node="x", receipt=receipt))
    (task,) = task_documents(Record(e.JOB, [e.core(), e.claim(1), e.assign(1), attempt]), str)
    assert task["receipt_cid"] == compute(DAG_CBOR, task["receipt"]).text
    (task,) = task_documents(Record(e.JOB, [e.core(), e.claim(1), e.assign(1)]), str)
    assert task["receipt_cid"] == ""
