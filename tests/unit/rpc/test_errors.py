from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimnode.errors import Code, DimError, FieldProblem, InvalidArgument, NotReady, Unavailable
from dimnode.rpc import errors

text = st.text(max_size=40)
problems = st.lists(st.builds(FieldProblem, text, text), max_size=5).map(tuple)
retry = st.none() | st.floats(0, 1e6)


@given(st.sampled_from(Code), text, text, problems, retry)
def test_an_error_survives_the_wire(
    code: Code, message: str, hint: str, fields: tuple[FieldProblem, ...], retry_after: float | None
) -> None:
    sent = errors.make_error(code, message, hint=hint, fields=fields, retry_after=retry_after)
    got = errors.from_status(*errors.to_status(sent))
    assert type(got) is type(sent)
    assert (got.code, got.message, got.hint, got.fields, got.retry_after) == (code, message, hint, fields, retry_after)


def test_every_code_has_a_status() -> None:
    assert set(errors.STATUS) == set(Code)


def test_a_plain_client_reads_field_and_rule() -> None:
    status, message, _ = errors.to_status(InvalidArgument("config.nodes must not be empty"))
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert message == "config.nodes must not be empty"


def test_codes_that_grpc_lacks_are_named_in_the_text() -> None:
    status, message, metadata = errors.to_status(NotReady("the job runs", retry_after=2.5))
    assert status is grpc.StatusCode.FAILED_PRECONDITION
    assert message == "NOT_READY: the job runs"
    assert ("retry-after", "2.5") in metadata


def test_details_stay_below_the_limits_of_http() -> None:
    fields = tuple(FieldProblem("f" * 500, "r" * 5000) for _ in range(500))
    _, message, metadata = errors.to_status(InvalidArgument("m" * 100_000, hint="h" * 100_000, fields=fields))
    assert len(message) <= errors.MAX_TEXT
    assert len(dict(metadata)[errors.DETAILS_KEY]) <= errors.MAX_DETAILS


@pytest.mark.parametrize("data", [b"", b"\xff\xff", b"\xa0", b"\x80", b"\xa1dcodegNOTHING"])
def test_details_of_strangers_are_ignored(data: bytes) -> None:
    got = errors.from_status(grpc.StatusCode.UNAVAILABLE, "gone", ((errors.DETAILS_KEY, data),))
    assert isinstance(got, Unavailable)
    assert got.message == "gone"


def test_a_status_that_dim_does_not_use_is_internal() -> None:
    got = errors.from_status(grpc.StatusCode.UNKNOWN, "", None)
    assert type(got) is DimError
    assert got.code is Code.INTERNAL
