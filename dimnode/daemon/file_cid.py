"""Whether a file is what its CID says."""

from __future__ import annotations

from pathlib import Path

from p2p.ipfs import cid as cids
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.unixfs import Layout


def cid_of(path: Path) -> str:
    """The CID that the file would get when it is added. Blocks for about a second per GiB. Raises `OSError`.

    Somebody else may have cut the same content into other blocks, under another CID: whoever compares must be able to fetch it again."""
    layout, chunk = Layout(), StoreSettings().chunk
    with path.open("rb") as f:
        part = f.read(chunk)
        layout.add(cids.compute(cids.RAW, part), len(part))
        while part := f.read(chunk):
            layout.add(cids.compute(cids.RAW, part), len(part))
    return layout.finish()[0].text


def is_content(path: Path, cid: str) -> bool:
    """False also for a file that cannot be read."""
    try:
        return cid_of(path) == cid
    except OSError:
        return False
