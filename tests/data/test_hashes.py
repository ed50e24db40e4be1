from __future__ import annotations

import hashlib

from llava_pat.data import hashes


def test_a_file_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "_BLOCK", 3)
    (tmp_path / "file").write_bytes(b"weights\n")
    assert hashes.file_sha256(tmp_path / "file") == hashlib.sha256(b"weights\n").hexdigest()
