"""Records and images -> lines of a regions file: by a detector of colours to the pixel, and by tiny models."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava_pat.annotation import pipeline, selection
from llava_pat.annotation.config import AnnotationConfig, parse_config
from llava_pat.annotation.items import REASONS, Item, find_items
from llava_pat.annotation.pipeline import Annotator
from llava_pat.annotation.regions_file import RegionsWriter
from llava_pat.annotation.stages import Detection, Detections, Detector, Segmenter
from llava_pat.data.geometry import CenterCrop
from llava_pat.data.images import BROKEN, MISSING, TOO_LARGE, open_image
from llava_pat.data.records import LEAVES_FOLDER, load_records
from llava_pat.data.regions import build_patch_regions, load_regions, to_mask
from tests.annotation import tiny_models

COLOURS = {"red circle": (255, 0, 0), "blue square": (0, 0, 255)}
GEOMETRY = CenterCrop(size=56, mean=(0.0,) * 3, std=(1.0,) * 3)


class ByColour(Detector):
    """Finds what has the colour of its name; a classical stand-in whose boxes are exact."""

    version = "colour"

    def detect(self, images, labels):
        results = []
        for image, wanted in zip(images, labels, strict=True):
            found = Detections()
            for label in wanted:
                inside = colour_mask(image, label)
                if inside.any():
                    ys, xs = np.nonzero(inside)
                    box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
                    found.found.append(Detection(label, box, 0.9))
            results.append(found)
        return results


class Inside(Segmenter):
    """The pixels of a box that are as red, or as blue, as can be."""

    version = "inside"

    def segment(self, images, boxes):
        masks = []
        for image, own in zip(images, boxes, strict=True):
            masks.append([])
            for x0, y0, x1, y1 in own:
                mask = np.zeros((image.height, image.width), bool)
                rows, columns = slice(int(y0), int(y1)), slice(int(x0), int(x1))
                either = colour_mask(image, "red circle") | colour_mask(image, "blue square")
                mask[rows, columns] = either[rows, columns]
                masks[-1].append(mask)
        return masks


def colour_mask(image: Image.Image, label: str) -> np.ndarray:
    if label not in COLOURS:
        return np.zeros((image.height, image.width), bool)
    return (np.abs(np.asarray(image).astype(int) - COLOURS[label]) < 60).all(-1)


def scene(height: int = 64, width: int = 96) -> tuple[Image.Image, dict[str, np.ndarray]]:
    """As the playground draws: a circle and a square on white."""
    ys, xs = np.mgrid[:height, :width]
    masks = {
        "red circle": (ys - 20) ** 2 + (xs - 60) ** 2 <= 144,
        "blue square": (abs(ys - 44) < 9) & (abs(xs - 20) < 9),
    }
    pixels = np.full((height, width, 3), 255, np.uint8)
    for label, mask in masks.items():
        pixels[mask] = COLOURS[label]
    return Image.fromarray(pixels), masks


def item(name: str, caption: str = "a red circle and two blue squares") -> Item:
    return Item(name, name, caption, f"records.json: {name}")


def by_colour(**settings) -> Annotator:
    config = parse_config({"tagger": {"kind": "caption", "engine": "rules"}, "segmenter": "boxes"} | settings)
    return Annotator(config, detector=ByColour(), segmenter=Inside())


def test_regions_are_exact(tmp_path: Path) -> None:
    image, masks = scene()
    image.save(tmp_path / "a.png")
    (answer,) = by_colour().annotate([item("a.png")], tmp_path)
    line = answer.line
    assert (line["id"], line["image"], line["width"], line["height"]) == ("a.png", "a.png", 96, 64)
    assert [region["label"] for region in line["regions"]] == ["red circle", "blue square"]
    assert line["tools"]["tagger"] == "caption (rules)" and line["tools"]["detector"] == "colour"
    with RegionsWriter(tmp_path / "regions.jsonl") as writer:
        writer.write(line)
    entry = load_regions(tmp_path / "regions.jsonl")["a.png"]
    for region in entry.regions:
        assert (to_mask(region, 64, 96) == masks[region.label]).all()
    assert answer.reason is None and not answer.left_out


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_image_has_its_regions_where_training_has_its_pixels(
    tmp_path: Path, orientation: int, tokenizer
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, masks = scene()
    image.save(tmp_path / "a.png", exif=exif)
    (answer,) = by_colour().annotate([item("a.png")], tmp_path)
    assert (answer.line["width"], answer.line["height"]) == (96, 64), "as it is stored"
    (tmp_path / "regions.jsonl").write_text(json.dumps(answer.line))
    entry = load_regions(tmp_path / "regions.jsonl")["a.png"]
    coverage, _, _ = build_patch_regions(entry, GEOMETRY, 14, tokenizer)
    with open_image(tmp_path / "a.png", "here") as opened:
        pixels = GEOMETRY.pixels(opened)
    red = ((pixels[0] > 0.8) & (pixels[1] < 0.2)).float().reshape(4, 14, 4, 14).mean((1, 3)).flatten()
    (row,) = [coverage[i] for i, region in enumerate(entry.regions) if region.label == "red circle"]
    assert row.max() > 0.5 and (row - red).abs().max() < 0.12, "edges are soft in the pixels"


def test_every_kind_of_image(tmp_path: Path) -> None:
    image, masks = scene()
    names = {"rgb.png": image, "alpha.png": image.convert("RGBA"), "palette.png": image.quantize(8)}
    names |= {"cmyk.tif": image.convert("CMYK"), "grey.png": image.convert("L")}
    names["deep.png"] = Image.fromarray(np.full((64, 96), 65535, np.uint16))
    for name, picture in names.items():
        picture.save(tmp_path / name)
    answers = {a.item.image: a for a in by_colour(batch_size=4).annotate([item(name) for name in names], tmp_path)}
    for name in ("rgb.png", "alpha.png", "palette.png", "cmyk.tif"):
        regions = answers[name].line["regions"]
        assert [region["area"] for region in regions] == [masks["red circle"].sum(), masks["blue square"].sum()], name
    for name in ("grey.png", "deep.png"):  # no colours in them
        assert answers[name].line is None and answers[name].reason.reason == pipeline.NOT_FOUND


def test_images_that_cannot_be_annotated_have_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    scene()[0].save(folder / "a.png")
    scene()[0].save(tmp_path / "outside.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "text.jpg").write_text("no")
    Image.new("1", (14_000, 14_000)).save(folder / "bomb.png")
    Image.new("RGB", (300, 300)).save(folder / "large.png")
    items = [
        item("../outside.png"), item("nowhere.png"), item("cut.png"), item("text.jpg"), item("bomb.png"),
        item("large.png"), item("a.png"), item("a.png", "two of them"), item("a.png", "a green dog"),
    ]  # fmt: skip
    why = REASONS
    answers = list(by_colour(batch_size=4, max_pixels=80_000).annotate(items, folder))
    assert [answer.item for answer in answers] == items, "one answer each, in order"
    assert [None if a.reason is None else a.reason.reason for a in answers] == [
        why[LEAVES_FOLDER], why[MISSING], why[BROKEN], why[BROKEN], why[TOO_LARGE],
        why[TOO_LARGE], None, pipeline.NO_LABEL, pipeline.NOT_FOUND,
    ]  # fmt: skip
    assert all((answer.line is None) == (answer.reason is not None) for answer in answers)
    assert "green dog" in answers[-1].reason.where and "records.json: a.png" in answers[-1].reason.where


class Given(Detector):
    """Detections as a test gives them."""

    version = "given"

    def __init__(self, found: list[Detection]) -> None:
        self.found = found

    def detect(self, images, labels):
        return [Detections(list(self.found), Counter({"somebody's reason": 2})) for _ in images]


def annotate_given(folder: Path, found: list[Detection], caption: str, masks: list | None = None, **settings):
    class Masks(Segmenter):
        version = "given"

        def segment(self, images, boxes):
            assert masks is None or [len(own) for own in boxes] == [len(masks)]
            return [[None] * len(own) for own in boxes] if masks is None else [masks]

    scene()[0].save(folder / "a.png")
    annotator = Annotator(parse_config(settings), detector=Given(found), segmenter=Masks())
    (answer,) = annotator.annotate([item("a.png", caption)], folder)
    return answer


def test_empty_and_full_masks_are_counted(tmp_path: Path) -> None:
    boxes = [Detection("cat", (0, 0, 30, 30), 0.9), Detection("dog", (40, 0, 70, 30), 0.8)]
    empty, full = np.zeros((64, 96), bool), np.ones((64, 96), bool)
    answer = annotate_given(tmp_path, boxes, "a cat, a dog", [empty, full])
    assert answer.line is None and answer.reason.reason == pipeline.NO_REGION
    assert answer.left_out == Counter({"somebody's reason": 2, selection.EMPTY: 1, selection.FULL: 1})
    answer = annotate_given(tmp_path, boxes, "a cat, a dog", [empty, full], selection={"bad_mask": "box"})
    assert [region["bbox"] for region in answer.line["regions"]] == [[0, 0, 30, 30], [40, 0, 30, 30]]


def test_labels_of_other_scripts_and_of_nobody(tmp_path: Path) -> None:
    found = [Detection("кот", (0, 0, 30, 30), 0.9), Detection("not asked", (0, 0, 30, 30), 0.9)]
    answer = annotate_given(tmp_path, found, "кот, 狗")
    assert [region["label"] for region in answer.line["regions"]] == ["кот"]
    assert answer.left_out[pipeline.NOT_ASKED] == 1
    answer = annotate_given(tmp_path, found, "кот, 狗", labels={"max_labels": 1})
    assert answer.left_out[pipeline.TOO_MANY_LABELS] == 1


def test_a_detectors_own_masks_are_not_segmented_again(tmp_path: Path) -> None:
    mine = np.zeros((64, 96), bool)
    mine[10:30, 10:30] = True
    other = np.zeros((64, 96), bool)
    other[40:60, 50:60] = True
    found = [
        Detection("cat", (10, 10, 30, 30), 0.5, mine),
        Detection("dog", (50, 40, 60, 60), 0.9),
        Detection("cat", (9, 10, 30, 30), 0.4, mine),
    ]
    answer = annotate_given(tmp_path, found, "a cat, a dog", [other])
    assert [(region["label"], region["bbox"]) for region in answer.line["regions"]] == [
        ("dog", [50, 40, 10, 20]), ("cat", [10, 10, 20, 20]),
    ]  # fmt: skip
    assert answer.left_out[selection.OVERLAP] == 1


def test_items_are_images_once_with_all_that_is_said(tmp_path: Path) -> None:
    def record(number: int, image: str | None, *answers: str) -> dict:
        turns = [
            {"from": who, "value": value} for text in answers for who, value in (("human", "What?"), ("gpt", text))
        ]
        if image is None:
            return {"id": str(number), "conversations": turns}
        turns[0]["value"] = "<image>\nWhat?"
        return {"id": str(number), "image": image, "conversations": turns}

    records = [
        record(1, "a.png", "a cat", "a dog"),
        record(2, None, "no image"),
        record(3, "b.png", "a car"),
        record(4, "a.png", "a bus"),
    ]
    (tmp_path / "records.json").write_text(json.dumps(records))
    items = find_items(load_records(tmp_path / "records.json", on_bad="skip"))
    assert [(one.id, one.image, one.caption) for one in items] == [
        ("1", "a.png", "a cat\na dog\na bus"), ("3", "b.png", "a car"),
    ]  # fmt: skip


@pytest.mark.parametrize("segmenter", ["sam", "sam2", "boxes"])
@pytest.mark.parametrize("detector", ["grounding_dino", "owlv2"])
def test_tiny_models_annotate(detector: str, segmenter: str, tmp_path: Path, tokenizer) -> None:
    """Random weights: what they find is noise, but every line must be one that stage 1 takes."""
    chosen = {"kind": detector, "model": str(getattr(tiny_models, f"save_{detector}")(tmp_path / "detector"))}
    chosen["box_threshold" if detector == "grounding_dino" else "threshold"] = 0.2
    masks = {"kind": segmenter}
    if segmenter != "boxes":
        masks["model"] = str(getattr(tiny_models, f"save_{segmenter}")(tmp_path / "segmenter"))
    images = tmp_path / "images"
    images.mkdir()
    items = []
    for number, (height, width) in enumerate([(64, 96), (96, 64), (64, 64), (40, 80)]):
        scene(height, width)[0].save(images / f"{number}.png")
        items.append(item(f"{number}.png", "a red circle, a blue square and a green triangle"))
    config = parse_config(
        {"detector": chosen, "segmenter": masks, "batch_size": 3, "selection": {"bad_mask": "box", "min_area": 4}}
    )
    answers = list(Annotator(config).annotate(items, images))
    assert len(answers) == 4 and any(answer.line for answer in answers)
    with RegionsWriter(tmp_path / "regions.jsonl") as writer:
        for answer in answers:
            if answer.line is not None:
                writer.write(answer.line)
    for entry in load_regions(tmp_path / "regions.jsonl").values():
        coverage, ids, _ = build_patch_regions(entry, GEOMETRY, 14, tokenizer)
        assert torch.isfinite(coverage).all() and len(ids) == len(coverage)
        for region in entry.regions:
            mask = to_mask(region, entry.height, entry.width)
            assert region.label in ("red circle", "blue square", "green triangle") and mask.any()
            x, y, w, h = region.bbox
            assert x >= 0 and y >= 0 and x + w <= entry.width and y + h <= entry.height


def test_the_default_config_names_what_it_is() -> None:
    config = AnnotationConfig()
    assert (config.tagger.kind, config.detector.kind, config.segmenter.kind) == ("caption", "grounding_dino", "sam2")
