from __future__ import annotations

from pathlib import Path

import pytest

from dimnode.errors import FailedPrecondition
from dimnode.rpc.tls import load_tls
from dimnode.security.certificates import CertificateSettings, make_certificate


async def test_good_files_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    one, two = (make_certificate(p, 1.8e9, CertificateSettings()) for p in "ab")
    cert, key, other, junk = (tmp_path / n for n in ("cert", "key", "other", "junk"))
    cert.write_bytes(one.pem)
    key.write_bytes(one.key)
    other.write_bytes(two.key)
    junk.write_text("junk")
    files = await load_tls(cert, key, cert)
    assert (files.certificate, files.key, files.client_ca) == (one.pem, one.key, one.pem)
    assert (await load_tls(str(cert), str(key))).client_ca is None
    for arguments, setting in (
        ((tmp_path / "none", key), r"tls\.cert"),
        ((junk, key), r"tls\.cert"),
        ((cert, junk), r"tls\.key"),
        ((cert, other), r"tls\.key is not the key"),
        ((cert, key, junk), r"tls\.client_ca"),
    ):
        with pytest.raises(FailedPrecondition, match=setting) as e:
            await load_tls(*arguments)
        assert str(tmp_path) not in str(e.value)
