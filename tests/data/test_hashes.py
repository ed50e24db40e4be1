from __future__ import annotations

import hashlib

from llava_pat.data import hashes


def test_a_file_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "_BLOCK", 3)
    (tmp_path / "file").write_bytes(b"weights\n")
    assert hashes.file_sha256(tmp_path / "file") == hashlib.sha256(b"weights\n").hexdigest()


def test_a_folder_of_shards_is_its_names_and_contents(tmp_path):
    (tmp_path / "b.jsonl").write_text("2")
    (tmp_path / "a.jsonl").write_text("1")
    found = hashes.file_sha256(tmp_path)
    lines = "".join(
        f"{name} {hashlib.sha256(text).hexdigest()}\n" for name, text in (("a.jsonl", b"1"), ("b.jsonl", b"2"))
    )
    assert found == hashlib.sha256(lines.encode()).hexdigest()
    (tmp_path / ".partial").write_text("not finished")
    assert hashes.file_sha256(tmp_path) == found
    (tmp_path / "a.jsonl").rename(tmp_path / "c.jsonl")
    assert hashes.file_sha256(tmp_path) != found
