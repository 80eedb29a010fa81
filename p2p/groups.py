"""Errors in nurseries come in groups: what is in one, and one error is that error."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in nested groups, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def sole(error: BaseException) -> BaseException:
    """The one exception inside nested groups of one, else the error itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


@contextmanager
def collapse() -> Generator[None]:
    """Callers of a context that runs tasks see the plain error, as if there were no nursery inside."""
    try:
        yield
    except BaseExceptionGroup as group:
        single = sole(group)
        if single is group:
            raise
        raise single from single.__cause__
