"""One signature for entries that are written together: over the root of a Merkle tree of them (RFC 9162, section 2.1).

Making a signature and checking it cost more than all else that is done with a small entry. Each entry carries what proves that it is in the
tree, and stays an entry by itself: it may be stored, sent and checked without the others.

A signature of 64 bytes is Ed25519 over the message. A longer one is: Ed25519 over ``PREFIX``, the number of leaves and the root; that number and the
index of the leaf, a byte each; the hashes beside the way to the root, from the leaf on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

Verify = Callable[[str, bytes, bytes], bool]
"""(peer id, signed bytes, signature) -> valid."""

PREFIX = b"dim-entries-v1:"
MOST = 16
"""Leaves of a tree: a sixteenth of a signature for each, and four hashes to prove it."""
_AUTHOR = 64
"""Characters that no peer id exceeds: of longer names nothing is remembered."""
_HASH = 32
_SIGNATURE = 64
_HEAD = _SIGNATURE + 2
_REMEMBERED = 4096


def sign_together(messages: Sequence[bytes], sign: Callable[[bytes], bytes]) -> list[bytes]:
    """The signature of each message; that of one alone is a plain one."""
    signatures: list[bytes] = []
    for start in range(0, len(messages), MOST):
        part = messages[start : start + MOST]
        signatures += [sign(part[0])] if len(part) == 1 else _sign_tree([_leaf(m) for m in part], sign)
    return signatures


def holds(author: str, message: bytes, signature: bytes, verify: Verify) -> bool:
    """Whether it is the author's signature of the message, made alone or together with others."""
    if len(signature) == _SIGNATURE:
        return verify(author, message, signature)
    path, rest = divmod(len(signature) - _HEAD, _HASH)
    if rest or path < 1 or len(author) > _AUTHOR:
        return False
    leaves, index = signature[_SIGNATURE:_HEAD]
    if not index < leaves <= MOST:
        return False
    root = _root(_leaf(message), index, leaves, (signature[at : at + _HASH] for at in range(_HEAD, len(signature), _HASH)))
    return root is not None and _signed(verify, author, _statement(leaves, root), signature[:_SIGNATURE])


@lru_cache(maxsize=_REMEMBERED)
def _signed(verify: Verify, author: str, statement: bytes, signature: bytes) -> bool:
    """The entries of a tree come together: the first has its signature checked."""
    return verify(author, statement, signature)


def _statement(leaves: int, root: bytes) -> bytes:
    return PREFIX + bytes((leaves,)) + root


def _leaf(message: bytes) -> bytes:
    return hashlib.sha256(b"\0" + message).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _sign_tree(leaves: Sequence[bytes], sign: Callable[[bytes], bytes]) -> list[bytes]:
    """The tree level by level; of an odd level the last one goes up as it is, which gives the tree of RFC 9162."""
    paths: list[list[bytes]] = [[] for _ in leaves]
    places = list(range(len(leaves)))
    level = list(leaves)
    while len(level) > 1:
        for leaf, place in enumerate(places):
            if (beside := place ^ 1) < len(level):
                paths[leaf].append(level[beside])
            places[leaf] = place // 2
        level = [_node(*level[at : at + 2]) if at + 1 < len(level) else level[at] for at in range(0, len(level), 2)]
    signature = sign(_statement(len(leaves), level[0]))
    return [signature + bytes((len(leaves), index)) + b"".join(path) for index, path in enumerate(paths)]


def _root(leaf: bytes, index: int, leaves: int, path: Iterable[bytes]) -> bytes | None:
    """What the path leads to (RFC 9162, section 2.1.3.2); None if it is too short or too long for that place."""
    at, last, root = index, leaves - 1, leaf
    for beside in path:
        if last == 0:
            return None
        if at & 1 or at == last:
            root = _node(beside, root)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            root = _node(root, beside)
        at, last = at >> 1, last >> 1
    return root if last == 0 else None
