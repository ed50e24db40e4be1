"""COCO instances, panoptic and LVIS in their official layout, against pycocotools and a plain-loop decoder."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from llava_pat.annotation.converters.coco_panoptic import read_segment_ids
from llava_pat.data.regions import load_regions, to_mask
from tests.annotation.samples import (
    SIZE,
    box_by_loop,
    disc,
    labels_and_masks,
    lines_of,
    rle,
    run,
    save_image,
    write_json,
)

H, W = SIZE
URL = "http://images.cocodataset.org"
NINE, TEN = "coco/train2017/000000000009.jpg", "coco/train2017/000000000010.jpg"


def uncompressed(mask: np.ndarray) -> dict:
    counts, value, length = [], 0, 0
    for pixel in mask.flatten(order="F"):
        if pixel != value:
            counts.append(length)
            value, length = 1 - value, 0
        length += 1
    return {"size": list(mask.shape), "counts": [*counts, length]}


def image(identity: int, **more: object) -> dict:
    name = f"{identity:012d}.jpg"
    size = {"width": W, "height": H}
    return {"id": identity, "file_name": name, "coco_url": f"{URL}/train2017/{name}", "license": 3, **size} | more


CATEGORIES = [
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "outdoor", "id": 10, "name": "traffic light"},
    {"supercategory": "кухня", "id": 51, "name": "Кружка"},
]
POLYGONS = [[3.5, 2.2, 30.7, 4.1, 25.3, 30.9, 6.0, 28.5], [40, 40, 60.5, 41, 55, 47.5]]
CROWD = disc(SIZE, 40, 20, 9) | disc(SIZE, 15, 30, 5)


def annotation(identity: int, image_id: int, category: int, segmentation: object, **more: object) -> dict:
    base = {"id": identity, "image_id": image_id, "category_id": category, "iscrowd": 0, "area": 1.0}
    return base | {"bbox": [0, 0, 5, 5], "segmentation": segmentation} | more


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    annotations = [
        annotation(1, 9, 1, POLYGONS),
        annotation(2, 9, 10, [[50.2, 5, 62, 5, 62, 20.4, 50.2, 20.4]]),
        annotation(3, 9, 1, uncompressed(CROWD), iscrowd=1),
        annotation(4, 10, 51, rle(disc(SIZE, 10, 10, 6))),
        annotation(5, 10, 1, [], bbox=[10.4, 20.6, 200, 3.1]),
        annotation(6, 10, 1, [[200, 200, 210, 200, 210, 210]]),  # beyond the image: no pixel
        annotation(7, 10, 1, [[1, 2, 3, 4]]),
        annotation(8, 10, 99, POLYGONS),
        annotation(9, 777, 1, POLYGONS),  # its image is not listed
        annotation(10, 10, 51, rle(disc(SIZE, 10, 10, 6))),  # twice the same
    ]
    content = {"info": {}, "licenses": [], "images": [image(9), image(10), image(11)], "categories": CATEGORIES}
    for identity in (9, 10, 11):
        save_image(tmp_path / "data" / "coco" / "train2017" / f"{identity:012d}.jpg")
    return write_json(tmp_path / "annotations" / "instances_train2017.json", content | {"annotations": annotations})


def as_coco(file: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(file))


def test_pixels_are_pycocotools_own(instances: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "r.jsonl"
    arguments = ("coco_instances", "--annotations", instances, "--image_folder", tmp_path / "data", "--out", out)
    status, table, error = run(capsys, *arguments, "--crowds", "keep")
    assert status == 0, error
    found = labels_and_masks(out, NINE)
    assert [label for label, _ in found] == ["person", "traffic light", "person"]
    theirs = as_coco(instances)
    for (_, mask), identity in zip(found, (1, 2, 3), strict=True):
        assert np.array_equal(mask, theirs.annToMask(theirs.anns[identity]))
    lines = lines_of(out)
    assert list(lines) == [NINE, TEN]
    for region, (_, mask) in zip(lines[NINE]["regions"], found, strict=True):
        assert region["area"] == mask.sum() and region["bbox"] == box_by_loop(mask)
    assert lines[NINE] | {"regions": 0, "tools": 0} == {
        "id": "9", "image": NINE, "width": W, "height": H, "regions": 0, "tools": 0,
        "source": "coco_instances: instances_train2017.json",
    }  # fmt: skip
    mug, box = lines[TEN]["regions"]
    assert mug["label"] == "кружка" and mug["segmentation"] == rle(disc(SIZE, 10, 10, 6))
    assert box == {"label": "person", "bbox": [10.4, 20.6, 53.6, 3.1], "area": 54 * 4}
    for reason in (
        "its image is not in the file. First: ",
        "no pixel of the image is in it",
        "its mask cannot be read",
        "its category is not in the file",
        "the same label and pixels as another",
        "no region is left",
    ):
        assert f"1  {reason}" in table, reason
    assert "person 3" in table and "Stage 1 takes it as --regions_path" in table


def test_crowds_are_left_out_unless_asked_for(instances: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "r.jsonl"
    status, table, _ = run(capsys, "coco_instances", "--annotations", instances, "--out", out)
    assert status == 0 and "1  a crowd (--crowds drop)" in table
    assert [label for label, _ in labels_and_masks(out, NINE)] == ["person", "traffic light"]


def test_small_and_many(instances: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "r.jsonl"
    run(capsys, "coco_instances", "--annotations", instances, "--out", out, "--max_regions", "1")
    lines = lines_of(out)
    assert [r["label"] for r in lines[NINE]["regions"]] == ["person"]  # the larger one
    assert [r["area"] for r in lines[TEN]["regions"]] == [216]
    _, table, _ = run(
        capsys, "coco_instances", "--annotations", instances, "--out", out, "--min_area", "200", "--overwrite"
    )
    assert "smaller than --min_area" in table and "of 200 pixels" in table


def test_names_of_other_coco_files(tmp_path: Path, capsys) -> None:
    """A file of one's own has no coco_url; 2014's points at a page."""
    images = [image(1, file_name="a/b.png"), image(2, file_name="COCO_val2014_000000000002.jpg")]
    del images[0]["coco_url"]
    images[1]["coco_url"] = "http://mscoco.org/images/2"
    content = {"images": images, "annotations": [annotation(i, i, 1, POLYGONS) for i in (1, 2)]}
    file = write_json(tmp_path / "own.json", content | {"categories": CATEGORIES})
    run(capsys, "coco_instances", "--annotations", file, "--out", tmp_path / "r.jsonl", "--prefix", "")
    assert list(load_regions(tmp_path / "r.jsonl")) == ["a/b.png", "COCO_val2014_000000000002.jpg"]
    run(capsys, "coco_instances", "--annotations", file, "--out", tmp_path / "p.jsonl", "--prefix", "x/y/")
    assert list(load_regions(tmp_path / "p.jsonl")) == ["x/y/a/b.png", "x/y/COCO_val2014_000000000002.jpg"]


def segment_ids_by_loop(png: Path) -> list[list[int]]:
    picture = Image.open(png)
    return [
        [sum(picture.getpixel((x, y))[channel] * 256**channel for channel in range(3)) for x in range(picture.width)]
        for y in range(picture.height)
    ]


PANOPTIC = [
    {"id": 1, "name": "person", "isthing": 1, "supercategory": "person"},
    {"id": 199, "name": "wall-other-merged", "isthing": 0, "supercategory": "wall"},
    {"id": 175, "name": "wall-stone", "isthing": 0, "supercategory": "wall"},
]


@pytest.fixture
def panoptic(tmp_path: Path) -> Path:
    """Ids that use all three channels; a crowd, a void area, a segment without pixels, a colour without a segment."""
    ids = np.full(SIZE, 199 + 256 * 3 + 256**2 * 250, np.int64)
    ids[disc(SIZE, 20, 20, 12) == 1] = 5
    ids[:, 50:] = 70_000
    ids[40:, :10] = 0
    ids[:4, :4] = 424_242
    ids[44:, 30:40] = 300
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)
    folder = tmp_path / "annotations" / "panoptic_train2017"
    folder.mkdir(parents=True)
    Image.fromarray(colours).save(folder / "000000000009.png")
    (folder / "000000000011.png").write_bytes((folder / "000000000009.png").read_bytes()[:60])
    Image.fromarray(colours[:10]).save(folder / "000000000012.png")

    def segment(identity: int, category: int, crowd: int = 0) -> dict:
        return {"id": identity, "category_id": category, "area": 1, "bbox": [0, 0, 1, 1], "iscrowd": crowd}

    segments = [segment(5, 1), segment(199 + 256 * 3 + 256**2 * 250, 199), segment(70_000, 175), segment(300, 1, 1)]
    segments.append(segment(999, 1))
    annotations = [
        {"image_id": i, "file_name": f"{i:012d}.png", "segments_info": segments} for i in (9, 10, 11, 12)
    ]  # fmt: skip
    images = [image(i) for i in (9, 10, 11, 12)]
    content = {"images": images, "annotations": annotations, "categories": PANOPTIC}
    return write_json(tmp_path / "annotations" / "panoptic_train2017.json", content)


def test_panoptic_is_what_a_plain_loop_decodes(panoptic: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "r.jsonl"
    status, table, error = run(capsys, "coco_panoptic", "--annotations", panoptic, "--out", out)
    assert status == 0, error
    ids = np.array(segment_ids_by_loop(panoptic.with_suffix("") / "000000000009.png"))
    assert np.array_equal(read_segment_ids(panoptic.with_suffix("") / "000000000009.png", ""), ids)
    found = labels_and_masks(out, NINE)
    assert [label for label, _ in found] == ["person", "wall", "stone wall"]
    for (_, mask), identity in zip(found, (5, 199 + 256 * 3 + 256**2 * 250, 70_000), strict=True):
        assert np.array_equal(mask, ids == identity)
    for region, (_, mask) in zip(lines_of(out)[NINE]["regions"], found, strict=True):
        assert region["bbox"] == box_by_loop(mask) and region["area"] == mask.sum()
    assert list(lines_of(out)) == [NINE]
    assert "15  the image's PNG of segments cannot be used. First: " in table  # missing, cut off, of another size
    assert "1  a crowd" in table and "1  no pixel of the image is in it" in table
    assert "1  a colour that segments_info does not have" in table and "3  no region is left" in table


@pytest.mark.parametrize(("kind", "labels"), [("things", ["person", "person"]), ("stuff", ["wall", "stone wall"])])
def test_panoptic_things_and_stuff(panoptic: Path, tmp_path: Path, capsys, kind: str, labels: list[str]) -> None:
    out = tmp_path / "r.jsonl"
    arguments = ("--annotations", panoptic, "--out", out, "--kind", kind, "--crowds", "keep")
    assert run(capsys, "coco_panoptic", *arguments)[0] == 0
    assert [label for label, _ in labels_and_masks(out, NINE)] == labels


def test_panoptic_without_its_folder(panoptic: Path, tmp_path: Path, capsys) -> None:
    arguments = ("--annotations", panoptic, "--out", tmp_path / "r.jsonl", "--masks", tmp_path / "no")
    status, _, error = run(capsys, "coco_panoptic", *arguments)
    assert status == 2 and "no such folder; give that of the panoptic PNG files by --masks" in error


def test_lvis(tmp_path: Path, capsys) -> None:
    """No file_name: which of COCO's folders an image is in stands in coco_url alone."""
    extra = {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
    images = [
        image(9, **extra),
        image(42, coco_url=f"{URL}/val2017/000000000042.jpg", **extra),
    ]
    for entry in images:
        del entry["file_name"]
    categories = [
        {"id": 1, "name": "bow_(weapon)", "synonyms": ["bow_(weapon)"], "synset": "bow.n.04", "frequency": "f"},
        {"id": 2, "name": "Christmas_tree", "synonyms": ["Christmas_tree"], "synset": "x", "frequency": "r"},
        {"id": 3, "name": "zebra", "synonyms": ["zebra"], "synset": "zebra.n.01", "frequency": "f"},
    ]
    annotations = [annotation(1, 9, 1, POLYGONS), annotation(2, 42, 2, POLYGONS), annotation(3, 42, 1, POLYGONS[:1])]
    for entry in annotations:
        del entry["iscrowd"]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file = write_json(tmp_path / "lvis_v1_train.json", content)
    status, _, error = run(capsys, "lvis", "--annotations", file, "--out", tmp_path / "r.jsonl")
    assert status == 0, error
    found = load_regions(tmp_path / "r.jsonl")
    assert list(found) == [NINE, "coco/val2017/000000000042.jpg"]
    assert [[r.label for r in e.regions] for e in found.values()] == [["bow"], ["christmas tree", "bow"]]
    theirs = as_coco(file)
    assert np.array_equal(to_mask(found[NINE].regions[0], H, W), theirs.annToMask(theirs.anns[1]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{oops", "no JSON .* download it again"),
        ([1], "is a list, not an object with images, annotations, categories"),
        ({"images": [], "annotations": []}, "entry top level: no 'categories'; is this the official file"),
        ({"images": [3], "annotations": [], "categories": []}, "'images' is not a list of objects"),
        ({"images": [image(9), image(9)], "annotations": [], "categories": []}, "two image entries have the id 9"),
        ({"images": [image(9)], "annotations": [{"id": 4}], "categories": []}, "entry annotation 4: no 'image_id'"),
        ({"images": [image(9, width=0)], "annotations": [], "categories": []}, "image 9 is 48 x 0"),
        ({"images": [image(9), image(8, coco_url=f"{URL}/train2017/000000000009.jpg")], "annotations": [],
          "categories": []}, "are both 'coco/train2017/000000000009.jpg'; a regions file has an image once"),
        ({"images": [image(9)], "annotations": [annotation(5, 9, 1, None, bbox=[1, 2, 3])], "categories": CATEGORIES},
         r"annotation 5: 'bbox' is \[1, 2, 3\], not"),
    ],
)  # fmt: skip
def test_a_broken_file_is_one_line(tmp_path: Path, capsys, content: object, message: str) -> None:
    file = tmp_path / "broken.json"
    if isinstance(content, str):
        file.write_text(content)
    else:
        write_json(file, content)
    status, _, error = run(capsys, "coco_instances", "--annotations", file, "--out", tmp_path / "r.jsonl")
    assert status == 2 and str(file) in error
    assert re.search(message, error), error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.json"]
