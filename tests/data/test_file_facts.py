from __future__ import annotations

import os

import pytest

from llava_pat.data import file_facts
from llava_pat.data.file_facts import MISSING, FileFacts


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"pixels")
    os.utime(path, ns=(5, 5))
    return path


def test_the_same_file_is_not_read(file, monkeypatch):
    facts = FileFacts.of(file)
    assert (facts.bytes, facts.mtime_ns) == (6, 5)
    monkeypatch.delattr(file_facts, "file_sha256")
    assert facts.change(file) == ""


def test_another_time_is_read_and_the_content_decides(file):
    facts = FileFacts.of(file)
    os.utime(file, ns=(6, 6))
    assert facts.change(file) == ""
    file.write_bytes(b"pixelS")
    assert facts.change(file).startswith(f"sha256 {facts.sha256[:12]} then, ")
    file.write_bytes(b"pixels and more")
    assert facts.change(file) == "6 bytes then, 15 now"


def test_a_file_that_was_not_there_or_is_not(file):
    assert MISSING.change(None) == ""
    assert MISSING.change(file).endswith("then, a file now") and FileFacts.of(file).change(None).startswith(
        "a file then, "
    )
