"""The committed job forms: what is accepted, and which field a refusal names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dimnode.domain.job_form import from_plain, parse_job_form
from dimnode.errors import InvalidArgument

FORMS = Path(__file__).parents[2] / "fixtures" / "forms"


@pytest.mark.parametrize("path", sorted((FORMS / "valid").iterdir()), ids=lambda p: p.stem)
def test_valid(path: Path) -> None:
    job = parse_job_form(json.loads(path.read_text()))
    assert from_plain(job.to_plain()).form == job.form
    assert parse_job_form(job.to_json()).form == job.form


@pytest.mark.parametrize("path", sorted((FORMS / "invalid").iterdir()), ids=lambda p: p.stem)
def test_invalid(path: Path) -> None:
    case = json.loads(path.read_text())
    with pytest.raises(InvalidArgument) as caught:
        parse_job_form(case["form"])
    assert case["field"] in [p.field for p in caught.value.fields]
    assert all(p.rule for p in caught.value.fields)


def test_a_step_names_one_node_or_several() -> None:
    steps = [{"step": 1, "model_id": "m", "node_id": "a", "nodes": ["b"]}]
    with pytest.raises(InvalidArgument, match="node_id or nodes"):
        parse_job_form({"pattern": "chained", "config": {"pipeline": steps}})
    with pytest.raises(InvalidArgument, match="at least one"):
        parse_job_form({"pattern": "chained", "config": {"pipeline": [{"step": 1, "model_id": "m", "nodes": []}]}})


def test_a_wrong_step_is_named_and_not_the_list_that_it_leaves_too_short() -> None:
    with pytest.raises(InvalidArgument) as wrong:
        parse_job_form({"pattern": "chained", "config": {"pipeline": [{"step": 1, "model_id": "m", "bogus": 1}]}})
    assert [p.field for p in wrong.value.fields] == ["config.pipeline[0].bogus"]
    with pytest.raises(InvalidArgument) as empty:
        parse_job_form({"pattern": "chained", "config": {"pipeline": []}})
    assert [(p.field, p.rule) for p in empty.value.fields] == [("config.pipeline", "has too few items")]
