"""Who a node is: one Ed25519 key, whose public half is the peer id itself.

A libp2p peer id of an Ed25519 key is the key (an "identity" multihash of its protobuf form), so a
signature can be checked from the peer id alone, without asking anyone. libsodium makes and checks them: twice as fast
as OpenSSL, and a job costs several.
"""

from __future__ import annotations

import base64
import binascii
import functools
import os
import secrets
import stat
from pathlib import Path

import base58
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

ID_PREFIX = bytes.fromhex("002408011220")
"""Identity multihash of 36 bytes, which are the protobuf {type: Ed25519, data: 32 bytes}."""
KEY_PREFIX = bytes.fromhex("08011240")
"""Protobuf {type: Ed25519, data: 64 bytes}: seed, then public key; the form that Kubo stores too."""
KEY_BYTES = 32
SIGNATURE_BYTES = 64


class IdentityError(Exception):
    """The key file cannot be used; the message says why and what to do, without the key."""


class Identity:
    """A node's private key. Satisfies ``dimnode.ports.Signer``; signing is quick and never blocks."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_BYTES:
            raise ValueError(f"an Ed25519 seed has {KEY_BYTES} bytes, not {len(seed)}")
        self._seed = seed
        self._public, self._secret = crypto_sign_seed_keypair(seed)
        self._peer_id = peer_id_text(ID_PREFIX + self._public)

    @classmethod
    def generate(cls) -> Identity:
        return cls(secrets.token_bytes(KEY_BYTES))

    @property
    def peer_id(self) -> str:
        return self._peer_id

    @property
    def key_pair(self) -> KeyPair:
        """The same key as libp2p wants it."""
        return create_new_key_pair(self._seed)

    def sign(self, data: bytes) -> bytes:
        """Ed25519, 64 bytes."""
        return crypto_sign(data, self._secret)[:SIGNATURE_BYTES]

    def export(self) -> str:
        """One line of base64: the content of the key file. Secret."""
        return base64.b64encode(KEY_PREFIX + self._seed + self._public).decode()

    def __repr__(self) -> str:
        return f"Identity({self._peer_id})"


def parse_key(text: str) -> Identity:
    """What `Identity.export` wrote. Raises `IdentityError`."""
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise IdentityError("the identity key is not base64: restore it from a backup") from None
    if len(raw) != len(KEY_PREFIX) + 2 * KEY_BYTES or not raw.startswith(KEY_PREFIX):
        raise IdentityError("the identity key is not an Ed25519 private key: restore it from a backup")
    body = raw[len(KEY_PREFIX) :]
    identity = Identity(body[:KEY_BYTES])
    if body[KEY_BYTES:] != identity._public:
        raise IdentityError("the identity key is damaged (its halves do not match): restore it from a backup")
    return identity


def load_or_create(path: Path) -> Identity:
    """The identity kept at ``path``; a new one is written there (0600, fsynced) if there is none.

    Blocks on the disk: call it from a thread. Raises `IdentityError`.
    """
    try:
        return load(path)
    except FileNotFoundError:
        return _create(path)


def load(path: Path) -> Identity:
    """Raises `FileNotFoundError`, `IdentityError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(descriptor, encoding="ascii", errors="replace") as file:
        mode = os.fstat(descriptor)
        if not stat.S_ISREG(mode.st_mode):
            raise IdentityError(f"{path.name} is not a regular file")
        if mode.st_mode & 0o077:
            raise IdentityError(f"others can read {path.name}: anyone who did can act as this node. Run: chmod 600 {path.name}")
        return parse_key(file.read(1024))


def _create(path: Path) -> Identity:
    identity = Identity.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(identity.export() + "\n")
            file.flush()
            os.fsync(descriptor)
        try:
            os.link(draft, path)  # unlike rename this never replaces the key that another process just made
        except FileExistsError:
            return load(path)
    finally:
        draft.unlink()
    _sync_folder(path.parent)
    return identity


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.lru_cache(maxsize=4096)
def peer_id_text(raw: bytes) -> str:
    """Base58 of a binary peer id."""
    return base58.b58encode(raw).decode()


def peer_id_bytes(text: str) -> bytes | None:
    """The binary peer id, or None if the text is not that of an Ed25519 key."""
    return _peer_id_bytes(text) if 40 <= len(text) <= 64 else None  # before anything is remembered of it


@functools.lru_cache(maxsize=4096)
def _peer_id_bytes(text: str) -> bytes | None:
    try:
        raw = base58.b58decode(text)
    except ValueError:
        return None
    return raw if len(raw) == len(ID_PREFIX) + KEY_BYTES and raw.startswith(ID_PREFIX) else None


def is_peer_id(text: str) -> bool:
    """Whether the text is the peer id of an Ed25519 key in base58, the only kind a DIM node has."""
    return peer_id_bytes(text) is not None


def verify_raw(raw_peer_id: bytes, data: bytes, signature: bytes) -> bool:
    """As `verify`, for a binary peer id."""
    if len(raw_peer_id) != len(ID_PREFIX) + KEY_BYTES or not raw_peer_id.startswith(ID_PREFIX) or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + data, raw_peer_id[len(ID_PREFIX) :])
    except BadSignatureError:
        return False
    return True


def verify(peer_id: str, data: bytes, signature: bytes) -> bool:
    """Whether the holder of ``peer_id`` signed ``data``; False for anything malformed."""
    raw = peer_id_bytes(peer_id)
    return raw is not None and verify_raw(raw, data, signature)
