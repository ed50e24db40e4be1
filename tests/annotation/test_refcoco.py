"""RefCOCO's official layout: a Python 2 pickle beside COCO's instances."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from llava_pat.data.regions import load_regions
from tests.annotation.samples import SIZE, disc, labels_and_masks, rle, run, write_json

H, W = SIZE
MASKS = {70: disc(SIZE, 20, 20, 9), 71: disc(SIZE, 50, 30, 8), 80: disc(SIZE, 30, 30, 12)}
SEVEN, EIGHT = "coco/train2017/000000000007.jpg", "coco/train2017/000000000008.jpg"


def ref(ref_id: int, ann_id: int, image_id: int, split: str, *sentences: str) -> dict:
    said = [
        {"tokens": s.split(), "raw": s.upper(), "sent_id": 10 * ref_id + i, "sent": s} for i, s in enumerate(sentences)
    ]
    name = f"COCO_train2014_{image_id:012d}_{ann_id}.jpg"
    base = {"ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "split": split, "file_name": name}
    return base | {"category_id": 18, "sent_ids": [s["sent_id"] for s in said], "sentences": said}


REFS = [
    ref(1, 70, 7, "train", "the big dog", "dog on left", "big dog"),
    ref(2, 71, 7, "train", "small dog"),
    ref(3, 80, 8, "testA", "all of it"),
    ref(4, 999, 7, "train", "nowhere"),
    ref(5, 70, 999, "train", "no such image"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = [
        {"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "coco_url": f"http://mscoco.org/images/{i}"}
        | {"width": W, "height": H}
        for i in (7, 8)
    ]
    annotations = [
        {"id": i, "image_id": i // 10, "category_id": 18, "segmentation": rle(mask), "bbox": [0, 0, 1, 1], "iscrowd": 0}
        for i, mask in MASKS.items()
    ]
    categories = [{"id": 18, "name": "dog", "supercategory": "animal"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(tmp_path / "refcoco" / "instances.json", content)
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(REFS, protocol=2))
    return tmp_path / "refcoco"


def test_sentences_are_labels_of_masks(folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "r.jsonl"
    status, table, error = run(capsys, "refcoco", "--annotations", folder / "refs(unc).p", "--out", out)
    assert status == 0, error
    assert list(load_regions(out)) == [SEVEN]  # image 8 is of testA: models are tested on it
    found = labels_and_masks(out, SEVEN)
    assert [label for label, _ in found] == ["big dog", "dog on left", "small dog"]
    for (_, mask), identity in zip(found, (70, 70, 71), strict=True):
        assert np.array_equal(mask, MASKS[identity])
    assert "1  its annotation is not in the file" in table and "1  its image is not in the file" in table
    assert "1  the same label and pixels as another" in table  # the big dog, big dog


def test_switches(folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "r.jsonl"
    (folder / "refs.json").write_text(json.dumps(REFS[:3]))
    base = ("refcoco", "--annotations", folder / "refs.json", "--out", out, "--overwrite")
    assert run(capsys, *base, "--split", "all", "--label", "category", "--names", "2014")[0] == 0
    found = load_regions(out)
    assert list(found) == [f"coco/train2014/COCO_train2014_00000000000{i}.jpg" for i in (7, 8)]
    assert [[r.label for r in e.regions] for e in found.values()] == [["dog", "dog"], ["dog"]]
    assert run(capsys, *base, "--split", "testA")[0] == 0
    assert list(load_regions(out)) == [EIGHT]
    status, _, error = run(capsys, *base, "--split", "testB")
    assert status == 2 and "no split 'testB'; it has testA, train (or: --split all)" in error


class _Danger:
    def __reduce__(self):
        return (print, ("run as the file was read",))


def test_a_pickle_that_would_run_code_is_refused(folder: Path, tmp_path: Path, capsys) -> None:
    (folder / "refs(unc).p").write_bytes(pickle.dumps([{"ref_id": _Danger()}]))
    status, out, error = run(capsys, "refcoco", "--annotations", folder / "refs(unc).p", "--out", tmp_path / "r.jsonl")
    assert status == 2 and "the pickle asks for builtins.print" in error and "run as" not in out
