from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from p2p import identity
from p2p.identity import Identity, IdentityError, is_peer_id, load, load_or_create, parse_key, verify

SEED = bytes(range(32))


def test_the_peer_id_is_libp2ps() -> None:
    assert Identity(SEED).peer_id == str(ID.from_pubkey(create_new_key_pair(SEED).public_key))
    assert str(ID.from_pubkey(Identity(SEED).key_pair.public_key)) == Identity(SEED).peer_id


def test_signatures_hold_for_their_author_and_data_only() -> None:
    mine, other = Identity(SEED), Identity.generate()
    signature = mine.sign(b"data")
    assert verify(mine.peer_id, b"data", signature)
    assert not verify(mine.peer_id, b"date", signature)
    assert not verify(other.peer_id, b"data", signature)
    assert not verify(mine.peer_id, b"data", signature[:-1])
    assert not verify(mine.peer_id, b"data", bytes(64))
    assert not verify("nobody", b"data", signature)


@pytest.mark.parametrize("text", ["", "Qm" + "a" * 44, "12D3KooW", "12D3KooW" + "0" * 44, "x" * 52, "1" * 60])
def test_what_is_no_peer_id(text: str) -> None:
    assert not is_peer_id(text)


def test_rsa_peer_ids_are_none_of_ours() -> None:
    assert not is_peer_id("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")
    assert is_peer_id(Identity(SEED).peer_id)


def test_a_raw_id_of_another_kind_verifies_nothing() -> None:
    assert not identity.verify_raw(b"\x12\x20" + bytes(32), b"data", bytes(64))


def test_the_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "home" / "identity.key"
    first = load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create(path).peer_id == first.peer_id
    assert os.listdir(path.parent) == ["identity.key"]


def test_a_key_made_by_another_process_meanwhile_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "identity.key"
    theirs = Identity.generate()
    generate = Identity.generate

    def race() -> Identity:
        path.write_text(theirs.export())
        path.chmod(0o600)
        return generate()

    monkeypatch.setattr(Identity, "generate", race)
    assert load_or_create(path).peer_id == theirs.peer_id
    assert os.listdir(tmp_path) == ["identity.key"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    load_or_create(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match="chmod 600"):
        load(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises((IdentityError, IsADirectoryError, OSError)):
        load(tmp_path)
    target = tmp_path / "real.key"
    load_or_create(target)
    link = tmp_path / "identity.key"
    link.symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        load(link)


def test_damaged_keys_are_refused_without_showing_them() -> None:
    good = Identity(SEED).export()
    other = Identity.generate().export()
    for text in ("", "not base64!", "AAAA", good[:-8], good[:40] + other[40:]):
        with pytest.raises(IdentityError) as caught:
            parse_key(text)
        assert not text or text not in str(caught.value)
    assert parse_key(good + "\n").peer_id == Identity(SEED).peer_id


def test_a_seed_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32"):
        Identity(b"short")


def test_the_key_does_not_show_in_its_repr() -> None:
    shown = repr(Identity(SEED))
    assert Identity(SEED).peer_id in shown
    assert SEED.hex() not in shown
