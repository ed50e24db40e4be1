"""Whole or not at all; JSONL, Parquet and shards say the same to stage 1."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from llava_pat.annotation.regions_file import RegionsWriter, region_entry
from llava_pat.data.regions import load_regions
from llava_pat.types import DataError
from tests.annotation.samples import disc, rle

with_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is an optional extra")


def some_lines(count: int) -> list[dict]:
    mask = rle(disc((30, 40), 10, 10, 4))
    regions = [
        region_entry("café", mask, [6, 6, 9, 9], 49),
        region_entry("box alone", None, [1.25, 2, 3.5, 4], 20, score=0.75),
    ]
    head = {"width": 40, "height": 30, "source": "test: file", "tools": {"llava_pat": "0"}}
    return [{"id": str(i), "image": f"{i}.png", "regions": regions[: 1 + i % 2], **head} for i in range(count)]


def entries(path: Path) -> list[tuple]:
    return [(e.id, e.image, e.width, e.height, e.regions) for e in load_regions(path).values()]


def write(path: Path, lines: list[dict], **options: object) -> None:
    with RegionsWriter(path, **options) as writer:
        for line in lines:
            writer.write(line)


def test_jsonl_is_the_lines(tmp_path: Path) -> None:
    lines = some_lines(3)
    write(tmp_path / "new" / "r.jsonl", lines)
    assert [json.loads(line) for line in (tmp_path / "new" / "r.jsonl").open(encoding="utf-8")] == lines
    assert "café" in (tmp_path / "new" / "r.jsonl").read_text(encoding="utf-8")


@with_pyarrow
def test_parquet_and_shards_say_the_same_as_jsonl(tmp_path: Path) -> None:
    lines = some_lines(1100)  # more than two row groups
    write(tmp_path / "r.jsonl", lines)
    write(tmp_path / "r.parquet", lines)
    write(tmp_path / "shards", lines, shard_size=500)
    expected = entries(tmp_path / "r.jsonl")
    assert entries(tmp_path / "r.parquet") == expected
    assert entries(tmp_path / "shards") == expected
    assert sorted(file.name for file in (tmp_path / "shards").iterdir()) == [f"part-0000{i}.parquet" for i in range(3)]


@with_pyarrow
def test_parquet_keeps_scores_and_tools(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    write(tmp_path / "r.parquet", some_lines(2))
    rows = parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert dict(rows[0]["tools"]) == {"llava_pat": "0"} and rows[0]["source"] == "test: file"
    assert [region["score"] for region in rows[1]["regions"]] == [None, 0.75]
    assert rows[1]["regions"][1]["segmentation"] is None


ENDINGS = ["r.jsonl", pytest.param("r.parquet", marks=with_pyarrow), pytest.param("shards", marks=with_pyarrow)]


@pytest.mark.parametrize("name", ENDINGS)
def test_an_error_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    for there in ([], some_lines(2)):
        if there:
            write(tmp_path / name, there)
        with pytest.raises(RuntimeError), RegionsWriter(tmp_path / name, overwrite=True) as writer:
            writer.write(some_lines(1)[0])
            raise RuntimeError
        assert [file.name for file in tmp_path.iterdir()] == ([name] if there else [])
    assert len(entries(tmp_path / name)) == 2
    with pytest.raises(DataError, match="is already there; give another name, or --overwrite"):
        RegionsWriter(tmp_path / name)
    write(tmp_path / name, some_lines(3), overwrite=True)
    assert len(entries(tmp_path / name)) == 3


def test_what_a_killed_writer_left_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".r.jsonl.partial").write_text("half a li")
    write(tmp_path / "r.jsonl", some_lines(1))
    assert [file.name for file in tmp_path.iterdir()] == ["r.jsonl"]


def test_names_and_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="ends in .jsonl or .parquet"):
        RegionsWriter(tmp_path / "r.json")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="folder.jsonl is a folder; remove it, or take another name"):
        RegionsWriter(tmp_path / "folder.jsonl", overwrite=True)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("r.parquet", "shards"):
        with pytest.raises(DataError, match="written by pyarrow, which is not installed: pip install pyarrow"):
            RegionsWriter(tmp_path / name)
