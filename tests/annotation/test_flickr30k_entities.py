"""Flickr30k Entities' official layout: Annotations/*.xml and Sentences/*.txt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llava_pat.annotation.converters.flickr30k_entities import read_boxes, read_phrases
from tests.annotation.samples import SIZE, labels_and_masks, run

H, W = SIZE
SENTENCES = """[/EN#1/people Two friends] play [/EN#2/other a card game] in [/EN#3/scene the park] .
[/EN#1/people/animals two friends] with [/EN#4/other Café tables] , [/EN#0/notvisual it] is late .
[/EN#5/clothing A red hat] is on [/EN#6/people a man] [/EN#6/people himself] .
Nothing here .
[/EN#5/clothing the red hat] again .
"""


def thing(names: tuple[int, ...], inside: str) -> str:
    return "<object>" + "".join(f"<name>{name}</name>" for name in names) + inside + "</object>"


def box(x0: int, y0: int, x1: int, y1: int) -> str:
    return f"<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>"


XML = (
    f"<annotation><filename>36979.jpg</filename><size><width>{W}</width><height>{H}</height><depth>3</depth></size>"
    + thing((1,), box(1, 1, 10, 20))
    + thing((1, 6), box(31, 11, 40, 30))
    + thing((5,), box(60, 2, 64, 48))
    + thing((2,), "<scene>0</scene><nobndbox>1</nobndbox>")
    + thing((3,), "<scene>1</scene><nobndbox>0</nobndbox>")
    + "</annotation>"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("Annotations/36979.xml", XML), ("Sentences/36979.txt", SENTENCES)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def pixels(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Boxes as the data set has them: from 1, last pixel included. Pixel by pixel."""
    mask = np.zeros(SIZE, np.uint8)
    for x0, y0, x1, y1 in boxes:
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                mask[y - 1, x - 1] = 1
    return mask


FRIENDS = [(1, 1, 10, 20), (31, 11, 40, 30)]
IMAGE = "flickr30k-images/36979.jpg"


def test_phrases_and_boxes(folder: Path, capsys) -> None:
    out = folder / "r.jsonl"
    status, table, error = run(capsys, "flickr30k_entities", "--annotations", folder, "--out", out)
    assert status == 0, error
    found = labels_and_masks(out, IMAGE)
    expected = {"two friends": FRIENDS, "red hat": [(60, 2, 64, 48)], "man": FRIENDS[1:], "himself": FRIENDS[1:]}
    assert [label for label, _ in found] == list(expected)
    for label, mask in found:
        assert np.array_equal(mask, pixels(*expected[label])), label
    assert "2  a phrase without a box" in table and "1  a phrase that shows nothing" in table
    assert "1  a phrase about the whole scene" in table


def test_switches(folder: Path, capsys) -> None:
    out = folder / "r.jsonl"
    arguments = ("--annotations", folder, "--out", out, "--several_boxes", "each", "--scenes", "keep")
    assert run(capsys, "flickr30k_entities", *arguments)[0] == 0
    found = labels_and_masks(out, IMAGE)
    assert [label for label, _ in found] == ["two friends", "two friends", "park", "red hat", "man", "himself"]
    assert np.array_equal(found[0][1], pixels(FRIENDS[0])) and np.array_equal(found[1][1], pixels(FRIENDS[1]))
    assert found[2][1].all()


def test_reading_alone(folder: Path) -> None:
    phrases = read_phrases(folder / "Sentences" / "36979.txt")
    assert phrases[0] == ("1", "two friends") and ("4", "café tables") in phrases and len(phrases) == 8
    read = read_boxes(folder / "Annotations" / "36979.xml")
    assert read.size == SIZE and read.scenes == {"3"} and sorted(read.boxes) == ["1", "5", "6"]


def test_broken_files_are_counted(folder: Path, capsys) -> None:
    (folder / "Annotations" / "2.xml").write_text(XML[:200])
    (folder / "Annotations" / "3.xml").write_text(XML.replace("<xmin>1</xmin>", ""))
    (folder / "Annotations" / "4.xml").write_text(XML)  # no sentences
    (folder / "Annotations" / "5.xml").write_text(XML.replace(f"<width>{W}</width>", "<width>0</width>"))
    arguments = ("--annotations", folder, "--out", folder / "r.jsonl")
    status, table, _ = run(capsys, "flickr30k_entities", *arguments)
    assert status == 0 and "4  its annotation files cannot be read. First: " in table
    status, _, error = run(
        capsys, "flickr30k_entities", "--annotations", folder / "Annotations", *arguments[2:], "--overwrite"
    )
    assert status == 2 and "unpack annotations.zip" in error
