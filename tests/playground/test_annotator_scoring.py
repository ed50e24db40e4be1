"""Figures about predicted regions: against COCOeval, by hand, and by the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from llava_pat.annotation.masks import area_of, box_of, encode_mask
from llava_pat.data.geometry import CenterCrop
from llava_pat.data.regions import load_regions
from llava_pat.types import DataError
from playground import world
from playground.annotator import evaluate, scoring
from playground.annotator.scheme import LABELS


def line(image: str, regions: list[tuple[str, np.ndarray]], height: int = 80, width: int = 80) -> dict:
    """A line of a regions file; best first, as annotation writes them."""
    entries = []
    for place, (label, mask) in enumerate(regions):
        rle = encode_mask(mask)
        about = {"label": label, "segmentation": rle, "bbox": box_of(rle), "area": area_of(rle)}
        entries.append(about | {"score": round(0.99 - place / 100, 2)})
    return {"id": image, "image": image, "width": width, "height": height, "regions": entries}


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def worsened(scenes: list[world.Scene], seed: int) -> tuple[list[dict], list[dict]]:
    """Exact and predicted lines: regions moved, missing, doubled, with other labels; images without any."""
    rng = np.random.default_rng(seed)
    exact, predicted = [], []
    for index, scene in enumerate(scenes):
        height, width = scene.instances.shape
        truth = [(thing.label, scene.instances == i) for i, thing in enumerate(scene.things)]
        exact.append(line(f"{index}.png", truth, height, width))
        found = []
        for label, mask in truth * 2:  # twice: only one of two can match
            if rng.random() < 0.3:
                continue
            moved = np.roll(mask, rng.integers(-2, 3, size=2), axis=(0, 1))
            found.append((LABELS[rng.integers(128)] if rng.random() < 0.2 else label, moved))
        if found:
            predicted.append(line(f"{index}.png", [found[i] for i in rng.permutation(len(found))], height, width))
    return exact, predicted


@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_matches_are_cocos(tmp_path: Path, scenes: list[world.Scene], threshold: float) -> None:
    exact, predicted = worsened(scenes[:60], seed=1)
    figures = evaluate.evaluate(
        load_regions(write(tmp_path / "p.jsonl", predicted)),
        load_regions(write(tmp_path / "e.jsonl", exact)),
        threshold,
    )
    sides = []
    for lines in (exact, predicted):
        entries = [
            {"image_id": one["image"], "category_id": LABELS.index(region["label"]) + 1, "iscrowd": 0} | region
            for one in lines
            for region in one["regions"]
        ]
        side = COCO()
        side.dataset = {
            "images": [{"id": one["image"], "height": one["height"], "width": one["width"]} for one in exact],
            "annotations": [entry | {"id": number} for number, entry in enumerate(entries, start=1)],
            "categories": [{"id": number, "name": label} for number, label in enumerate(LABELS, start=1)],
        }
        side.createIndex()
        sides.append(side)
    judge = COCOeval(*sides, "segm")
    judge.params.iouThrs = np.array([threshold])
    judge.evaluate()
    seen = [one for one in judge.evalImgs if one is not None and one["aRng"] == judge.params.areaRng[0]]
    right = sum(int((one["dtMatches"][0] > 0).sum()) for one in seen)
    there, found = sum(len(one["gtIds"]) for one in seen), sum(len(one["dtIds"]) for one in seen)
    total = figures["regions"]
    assert (total["exact"], total["predicted"]) == (there, found)
    assert total["recall"] == round(right / there, 4) and total["precision"] == round(right / found, 4)
    assert 0.1 < total["recall"] < 0.95, "neither of the sides is empty"
    assert sum(figures["kinds"][kind]["exact"] for kind in world.KINDS) == there
    assert sum(figures["colours"][colour]["predicted"] for colour in world.COLOURS) == found
    assert figures["digits"]["exact"] + figures["shapes"]["exact"] == there
    assert figures["without_prediction"] == 60 - len(predicted)


def test_each_region_matches_once() -> None:
    assert scoring.match(np.array([[0.6, 0.9], [0.7, 0.8]]), 0.5) == [0.9, 0.7]
    assert scoring.match(np.array([[0.6, 0.9], [0.4, 0.8]]), 0.5) == [0.9]
    assert scoring.match(np.array([[0.5]]), 0.5) == [0.5]
    assert scoring.match(np.zeros((2, 0)), 0.5) == scoring.match(np.zeros((0, 2)), 0.5) == []


def box(y0: int, y1: int, x0: int, x1: int, height: int = 80, width: int = 112) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_patches_are_those_of_the_crop(tmp_path: Path) -> None:
    """112 x 80 loses 16 columns on both sides."""
    exact = line("a.png", [("red three", box(0, 16, 16, 32)), ("blue star", box(0, 8, 0, 16))], 80, 112)
    near = [("red three", box(0, 8, 16, 32)), ("red six", box(8, 16, 16, 24)), ("blue star", box(40, 42, 96, 112))]
    read = load_regions(write(tmp_path / "e.jsonl", [exact]))["a.png"]
    found = load_regions(write(tmp_path / "p.jsonl", [line("a.png", near, 80, 112)]))["a.png"]
    geometry, score = CenterCrop(80, (0.5,) * 3, (0.5,) * 3), scoring.Score()
    labels = scoring.patch_labels(read, geometry, 8)
    assert {place for place, label in enumerate(labels) if label == "red three"} == {0, 1, 10, 11}
    assert set(labels) == {"red three", None}, "the star is cut off"
    scoring.score_patches(read, found, geometry, 8, score)
    scoring.score_patches(read, None, geometry, 8, score)
    # right 0 and 1; 10 is a six, 11 is missed; the star at the cut edge covers a quarter of nothing: no 26th row
    assert (score.patches.exact, score.patches.right, score.patches.predicted) == (8, 2, 3)


def test_a_patch_is_of_what_covers_most_of_it(tmp_path: Path) -> None:
    regions = [("red one", box(0, 8, 0, 3, 80, 80)), ("blue one", box(0, 8, 3, 8, 80, 80)),
               ("pink one", box(8, 16, 0, 4, 80, 80)), ("cyan one", box(8, 16, 4, 8, 80, 80)),
               ("green one", box(0, 8, 8, 10, 80, 80)), ("red six", box(8, 15, 8, 10, 80, 80))]  # fmt: skip
    entry = load_regions(write(tmp_path / "e.jsonl", [line("a.png", regions)]))["a.png"]
    labels = scoring.patch_labels(entry, CenterCrop(80, (0.5,) * 3, (0.5,) * 3), 8)
    assert labels[0] == "blue one" and labels[10] == "pink one", "of equals the first"
    assert labels[1] == "green one" and labels[11] is None, "a quarter counts, less does not"
    assert scoring.patch_labels(None, CenterCrop(80, (0.5,) * 3, (0.5,) * 3), 8) == [None] * 100


def test_the_command(tmp_path: Path, made: Path, capsys: pytest.CaptureFixture) -> None:
    exact = str(made / "regions_val.jsonl")
    evaluate.main([exact, exact, "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["regions"]["recall"] == figures["regions"]["precision"] == figures["regions"]["mean_iou"] == 1
    assert figures["patches"]["recall"] == figures["patches"]["precision"] == 1 and figures["patches"]["exact"] > 50
    shown = capsys.readouterr().out
    assert "12 images, 0 of them without a prediction" in shown and "1.000" in shown
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(made / "regions_test.jsonl"), exact])
    assert stop.value.code == 2 and "the exact ones lack this image (7 such)" in capsys.readouterr().err


def test_another_size_is_refused(tmp_path: Path) -> None:
    sides = []
    for name, width in (("e", 80), ("p", 88)):
        regions = [("red one", box(0, 8, 0, 8, 80, width))]
        sides.append(load_regions(write(tmp_path / f"{name}.jsonl", [line("a.png", regions, 80, width)])))
    with pytest.raises(DataError, match="88 x 80, exact 80 x 80"):
        evaluate.evaluate(sides[1], sides[0], 0.5)
