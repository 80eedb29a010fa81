"""Failures of the content store in the words of the error tree."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from dimnode.errors import DataLoss, InvalidArgument, ResourceExhausted, Unavailable
from p2p.ipfs.api import BadCid, BlockCorrupt, BlockMissing, ContentError, DiskFull, TooLarge


@contextmanager
def store_errors(what: str) -> Generator[None]:
    """Turns every `ContentError` about ``what`` into a `dimnode.errors.DimError`."""
    try:
        yield
    except BlockMissing as e:
        raise Unavailable(f"{what} could not be fetched: no node had it in time") from e
    except BlockCorrupt as e:
        raise DataLoss(f"{what} is corrupt: its bytes do not match its CID") from e
    except TooLarge as e:
        raise ResourceExhausted(f"{what} is larger than allowed") from e
    except BadCid as e:
        raise InvalidArgument(f"{what} is named by something that is not a usable CID") from e
    except DiskFull as e:
        raise ResourceExhausted(f"{what} could not be stored: the disk is full") from e
    except ContentError as e:
        raise Unavailable(f"{what} could not be had from the content store") from e
