from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from llava_pat.data.geometry import CenterCrop, Pad
from llava_pat.data.region_rows import count_rows, find_shards
from llava_pat.data.regions import build_patch_regions, load_regions, to_mask
from llava_pat.types import DataError, Region

NUMBERS = {"size": 112, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def rectangle(height, width, x, y, w, h):
    mask = np.zeros((height, width), np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def rle(mask):
    found = coco.encode(np.asfortranarray(mask))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def uncompressed(mask):
    """COCO's run lengths, counted by hand: column by column, zeros first."""
    counts, value, run = [], 0, 0
    for pixel in mask.flatten(order="F"):
        if pixel == value:
            run += 1
        else:
            counts.append(run)
            value, run = 1 - value, 1
    return {"size": list(mask.shape), "counts": [*counts, run]}


def line(regions, width=40, height=30, image="a.png", **more):
    return {"id": "1", "image": image, "width": width, "height": height, "regions": regions} | more


def write(path, *lines):
    path.write_text("\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in lines))
    return path


MASK = rectangle(30, 40, x=5, y=10, w=12, h=7)
FORMS = {
    "compressed": {"segmentation": rle(MASK)},
    "uncompressed": {"segmentation": uncompressed(MASK)},
    "polygon": {"segmentation": [[5, 10, 17, 10, 17, 17, 5, 17]]},
    "two polygons": {"segmentation": [[5, 10, 11, 10, 11, 17, 5, 17], [11, 10, 17, 10, 17, 17, 11, 17]]},
    "box": {"bbox": [5, 10, 12, 7]},
    "box, empty polygons": {"bbox": [5, 10, 12, 7], "segmentation": []},
}


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_gives_the_same_mask(tmp_path, form):
    found = load_regions(write(tmp_path / "r.jsonl", line([{"label": "red circle"} | FORMS[form]])))
    assert list(found) == ["a.png"]
    entry = found["a.png"]
    assert (entry.width, entry.height, entry.line, entry.regions[0].label) == (40, 30, 1, "red circle")
    mask = to_mask(entry.regions[0], 30, 40)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, MASK)


def test_segmentation_wins_over_box_and_boxes_stop_at_the_image():
    both = Region("x", rle(MASK), (0.0, 0.0, 40.0, 30.0))
    assert np.array_equal(to_mask(both, 30, 40), MASK)
    over = Region("x", None, (-3.0, 25.5, 8.0, 99.0))
    assert np.array_equal(to_mask(over, 30, 40), rectangle(30, 40, 0, 25, 5, 5))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{oops", "bad JSON"),
        ("[1]", "is a list"),
        ({"id": 1, "image": "b.png", "width": 3, "regions": []}, "lacks 'height'"),
        (line([], image=""), "'image' is ''"),
        (line([], width=0, image="b.png"), "'width' is 0"),
        (line({}, image="b.png"), "'regions' is a dict"),
        (line([{"bbox": [0, 0, 1, 1]}], image="b.png"), "region 0: lacks a 'label'"),
        (line([{"label": " ", "bbox": [0, 0, 1, 1]}], image="b.png"), "region 0: has an empty label"),
        (line([{"label": "x"}], image="b.png"), "has neither 'segmentation' nor 'bbox'"),
        (line([{"label": "x", "bbox": [0, 0, 1]}], image="b.png"), "'bbox' is"),
        (line([{"label": "x", "bbox": [0, 0, 1, -1]}], image="b.png"), "'bbox' is"),
        (line([{"label": "x", "bbox": [0, 0, 1, float("nan")]}], image="b.png"), "'bbox' is"),
        (line([{"label": "x", "segmentation": [[0, 0, 1, 1]]}], image="b.png"), "at least 3 x, y pairs"),
        (line([{"label": "x", "segmentation": {"size": [30, 40]}}], image="b.png"), "needs 'size' and 'counts'"),
        (line([{"label": "x", "segmentation": rle(MASK)}], width=30, height=40, image="b.png"),
         r"mask is \[30, 40\] \(height, width\) but its image is \[40, 30\]"),
        (line([]), "the image is on line 1 as well"),
    ],
)  # fmt: skip
def test_bad_lines_are_named(tmp_path, bad, message):
    file = write(tmp_path / "r.jsonl", line([]), "", bad)
    with pytest.raises(DataError, match=message) as caught:
        load_regions(file)
    assert str(caught.value).startswith(f"{file}:3")


def test_unreadable_counts_are_named(tmp_path, large_tokenizer):
    wrong = {"size": [30, 40], "counts": [5, 5]}
    entry = load_regions(write(tmp_path / "r.jsonl", line([{"label": "x", "segmentation": wrong}])))["a.png"]
    with pytest.raises(DataError, match=r"r\.jsonl:1 \(image 'a\.png'\).*add up to 10, not to 1200"):
        build_patch_regions(entry, Pad(**NUMBERS), 14, large_tokenizer)


def test_empty_and_missing_files(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_regions(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no regions"):
        load_regions(write(tmp_path / "r.jsonl", ""))


def one_image(tmp_path, regions, width, height):
    return load_regions(write(tmp_path / "r.jsonl", line(regions, width, height)))["a.png"]


def test_coverage_and_labels(tmp_path, large_tokenizer):
    """112 x 112 in patches of 14: boxes on the grid are whole patches; patch 1 lies under both regions."""
    regions = [{"label": "red circle", "bbox": [0, 0, 28, 14]}, {"label": "blue square", "bbox": [14, 0, 7, 14]}]
    entry = one_image(tmp_path, regions, 112, 112)
    coverage, labels, dropped = build_patch_regions(entry, CenterCrop(**NUMBERS), 14, large_tokenizer)
    assert coverage.shape == (2, 64) and coverage.dtype == torch.float32
    assert coverage[0, :3].tolist() == pytest.approx([1, 1, 0])
    assert coverage[1, :3].tolist() == pytest.approx([0, 0.5, 0])
    assert coverage.sum() == pytest.approx(2.5)
    assert [large_tokenizer.convert_ids_to_tokens(ids) for ids in labels] == [
        ["\u2581red", "\u2581circle"],
        ["\u2581blue", "\u2581square"],
    ]
    assert dropped == 0


def test_removed_by_the_crop_is_counted(tmp_path, large_tokenizer):
    regions = [{"label": "left", "bbox": [0, 0, 50, 100]}, {"label": "middle", "bbox": [90, 40, 20, 20]}]
    entry = one_image(tmp_path, regions, 200, 100)
    coverage, labels, dropped = build_patch_regions(entry, CenterCrop(**NUMBERS), 14, large_tokenizer)
    assert (len(coverage), len(labels), dropped) == (1, 1, 1)
    assert large_tokenizer.decode(labels[0]).strip() == "middle"
    assert build_patch_regions(entry, Pad(**NUMBERS), 14, large_tokenizer)[2] == 0
    nothing = one_image(tmp_path, regions[:1], 200, 100)
    coverage, labels, dropped = build_patch_regions(nothing, CenterCrop(**NUMBERS), 14, large_tokenizer)
    assert (coverage.shape, labels, dropped) == ((0, 64), [], 1)


def test_min_coverage(tmp_path, large_tokenizer):
    regions = [{"label": "x", "bbox": [0, 0, 21, 14]}, {"label": "y", "bbox": [0, 0, 7, 7]}]
    entry = one_image(tmp_path, regions, 112, 112)
    coverage, _, dropped = build_patch_regions(entry, CenterCrop(**NUMBERS), 14, large_tokenizer, min_coverage=0.6)
    assert (coverage.sum().item(), dropped) == (1.0, 1)


def test_label_without_tokens(tmp_path, large_tokenizer):
    entry = one_image(tmp_path, [{"label": "<unk>", "bbox": [0, 0, 9, 9]}], 112, 112)
    with pytest.raises(DataError, match=r"r\.jsonl:1 .*label '<unk>' has no tokens"):
        build_patch_regions(entry, Pad(**NUMBERS), 14, large_tokenizer)


def test_keys_that_the_reader_does_not_know_are_no_error(tmp_path):
    region = {"label": "café", "segmentation": rle(MASK), "area": 84, "score": 0.5, "scores": {"box": 0.4}}
    file = write(tmp_path / "r.jsonl", line([region], source="coco", tools={"llava_pat": "1"}))
    assert load_regions(file)["a.png"].regions == (Region("café", rle(MASK), None),)


def test_a_folder_of_shards_is_one_file(tmp_path):
    write(tmp_path / "part-00001.jsonl", line([], image="b.png"))
    write(tmp_path / "part-00000.jsonl", line([], image="a.png"))
    write(tmp_path / ".part-00002.jsonl", "half a li")
    assert list(load_regions(tmp_path)) == ["a.png", "b.png"]
    assert count_rows(find_shards(tmp_path)) == 2
    write(tmp_path / "part-00002.jsonl", line([], image="a.png"))
    with pytest.raises(DataError, match=r"part-00002.jsonl:1 .*is on line 1 of .*part-00000.jsonl as well"):
        load_regions(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="this folder has no .parquet or .jsonl files"):
        load_regions(tmp_path / "empty")


def test_text_that_is_no_utf8_is_named(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(json.dumps(line([])).encode() + b"\n\xff\n")
    with pytest.raises(DataError, match="r.jsonl: not UTF-8 text"):
        load_regions(tmp_path / "r.jsonl")


def test_parquet_gives_the_same_regions(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        line([{"label": "red circle", "segmentation": rle(MASK), "bbox": [5, 10, 12, 7]}]),
        line([{"label": "café", "segmentation": None, "bbox": [1.5, 0, 2, 3.25]}], image="b.png"),
        line([], image="c.png"),
    ]
    expected = load_regions(write(tmp_path / "r.jsonl", *rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    found = load_regions(tmp_path / "r.parquet")
    assert [(e.id, e.image, e.width, e.height, e.regions, e.line) for e in found.values()] == [
        (e.id, e.image, e.width, e.height, e.regions, e.line) for e in expected.values()
    ]
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write(" \n\n")
    assert count_rows([tmp_path / "r.parquet"]) == count_rows([tmp_path / "r.jsonl"]) == 3
    (tmp_path / "r.parquet").write_bytes((tmp_path / "r.parquet").read_bytes()[:50])
    for read in (load_regions, lambda file: count_rows([file])):
        with pytest.raises(DataError, match="r.parquet: no whole Parquet file"):
            read(tmp_path / "r.parquet")


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "r.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="read by pyarrow, which is not installed: pip install pyarrow"):
        load_regions(tmp_path / "r.parquet")
