"""A checkpoint's hash changes with its weights and settings, and with nothing else."""

from __future__ import annotations

import hashlib

from llava_pat.evaluation.hashes import folder_hash


def test_folder_hash(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights" * 1000)
    (tmp_path / "config.json").write_text("{}")
    expected = hashlib.sha256(
        f"config.json {hashlib.sha256(b'{}').hexdigest()}\n"
        f"model.safetensors {hashlib.sha256(b'weights' * 1000).hexdigest()}\n".encode()
    ).hexdigest()
    assert folder_hash(tmp_path) == expected
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "checkpoint-1").mkdir()
    assert folder_hash(tmp_path) == expected
    (tmp_path / "config.json").write_text("{ }")
    assert folder_hash(tmp_path) != expected
    assert folder_hash("lmsys/vicuna-7b-v1.5") == "hub id lmsys/vicuna-7b-v1.5"
