"""Visual Genome's official layout: objects.json, region_descriptions.json, image_data.json, object_alias.txt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.annotation.samples import SIZE, labels_and_masks, lines_of, run, save_image, write_json

H, W = SIZE
SITE = "https://cs.stanford.edu/people/rak248"
ONE, TWO = "vg/VG_100K_2/1.jpg", "vg/VG_100K/2.jpg"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = [
        {"image_id": 1, "url": f"{SITE}/VG_100K_2/1.jpg", "width": W, "height": H, "coco_id": None, "flickr_id": None},
        {"image_id": 2, "url": f"{SITE}/VG_100K/2.jpg", "width": W, "height": H, "coco_id": 7, "flickr_id": 8},
    ]
    write_json(tmp_path / "image_data.json", images)

    def thing(identity: int, x: int, y: int, w: int, h: int, *names: str) -> dict:
        base = {"object_id": identity, "x": x, "y": y, "w": w, "h": h, "names": list(names)}
        return base | {"synsets": ["x.n.01"], "merged_object_ids": []}

    objects = [
        {"image_id": 1, "image_url": "x", "objects": [
            thing(5, 4, 3, 10, 20, "Clock", "the clock face"), thing(6, 50, 40, 99, 99, "trees"),
            thing(7, 0, 0, 0, 5, "nothing"), thing(8, -5, -5, 10, 10, "sidewalk")]},
        {"image_id": 2, "image_url": "x", "objects": []},
        {"image_id": 3, "image_url": "x", "objects": [thing(9, 1, 1, 2, 2, "lost")]},
    ]  # fmt: skip
    write_json(tmp_path / "objects.json", objects)
    regions = [{"region_id": 1382, "image_id": 1, "phrase": "The clock is green in colour.", "x": 4, "y": 3}]
    regions[0] |= {"width": 10, "height": 20}
    write_json(tmp_path / "region_descriptions.json", [{"id": 1, "regions": regions}, {"id": 2, "regions": []}])
    (tmp_path / "object_alias.txt").write_text("tree,trees\nclock,clock face,Clock\n")
    return tmp_path


def mask(x: int, y: int, w: int, h: int) -> np.ndarray:
    found = np.zeros(SIZE, np.uint8)
    found[max(y, 0) : y + h, max(x, 0) : x + w] = 1
    return found


def test_objects(folder: Path, capsys) -> None:
    out = folder / "r.jsonl"
    status, table, error = run(capsys, "visual_genome", "--annotations", folder / "objects.json", "--out", out)
    assert status == 0, error
    found = labels_and_masks(out, ONE)
    assert [label for label, _ in found] == ["clock", "clock face", "trees", "sidewalk"]
    boxes = [(4, 3, 10, 20), (4, 3, 10, 20), (50, 40, 99, 99), (-5, -5, 10, 10)]
    for (_, pixels), box in zip(found, boxes, strict=True):
        assert np.array_equal(pixels, mask(*box))
    assert lines_of(out)[ONE]["regions"][2] == {"label": "trees", "bbox": [50, 40, 14, 8], "area": 112}
    assert "1  no pixel of the image is in it" in table and "1  its image is not in the file" in table


def test_aliases_become_the_first_name(folder: Path, capsys) -> None:
    out = folder / "r.jsonl"
    arguments = ("--annotations", folder / "objects.json", "--alias", folder / "object_alias.txt", "--out", out)
    assert run(capsys, "visual_genome", *arguments)[0] == 0
    assert [label for label, _ in labels_and_masks(out, ONE)] == ["clock", "tree", "sidewalk"]


def test_region_descriptions(folder: Path, capsys) -> None:
    out = folder / "r.jsonl"
    arguments = ("--annotations", folder / "region_descriptions.json", "--out", out)
    assert run(capsys, "visual_genome", *arguments)[0] == 0
    ((label, pixels),) = labels_and_masks(out, ONE)
    assert label == "clock is green in colour" and np.array_equal(pixels, mask(4, 3, 10, 20))


def test_bad_files(folder: Path, capsys) -> None:
    out = ("--out", folder / "r.jsonl")
    save_image(folder / "data" / "vg" / "VG_100K_2" / "1.jpg", (50, 64))
    arguments = ("--annotations", folder / "objects.json", *out, "--image_folder", folder / "data")
    status, _, error = run(capsys, "visual_genome", *arguments)
    assert status == 2 and "nothing could be converted, so nothing was written" in error
    assert "of another size than annotated" in error and "(50, 64)" in error and "no such image file" in error
    write_json(
        folder / "objects.json", [{"image_id": 1, "objects": [{"object_id": 5, "names": ["x"], "x": 1, "y": 2}]}]
    )
    status, _, error = run(capsys, "visual_genome", "--annotations", folder / "objects.json", *out)
    assert status == 2 and "objects.json, entry image 1, object 5: no 'w'" in error
    (folder / "image_data.json").unlink()
    status, _, error = run(capsys, "visual_genome", "--annotations", folder / "objects.json", *out)
    assert status == 2 and "--image_data FILE" in error
