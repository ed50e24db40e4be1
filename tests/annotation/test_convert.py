"""The command: what it shares between data sets, stage 1's reading of the result, the playground there and back."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from llava_pat.annotation.convert import build_parser, main
from llava_pat.annotation.converters import CONVERTERS
from llava_pat.data.dataset import LlavaDataset
from llava_pat.data.geometry import CenterCrop, Pad
from llava_pat.data.records import load_records
from llava_pat.data.regions import build_patch_regions, load_regions
from llava_pat.data.templates import TEMPLATES
from tests.annotation.samples import disc, lines_of, rle, run, save_image, write_json

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = {"size": 112, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def write_coco(file: Path, images: list[dict], regions: dict[str, list[dict]]) -> Path:
    """A COCO instances file of regions: names of images -> {"label", "segmentation", "bbox"}. Categories are labels."""
    labels = sorted({region["label"] for found in regions.values() for region in found})
    numbers = {image["file_name"]: image["id"] for image in images}
    annotations = [
        {"image_id": numbers[name], "category_id": labels.index(region["label"]) + 1, "iscrowd": 0}
        | {key: region[key] for key in ("segmentation", "bbox") if key in region}
        | {"area": int(coco.area(region["segmentation"]))}
        for name, found in regions.items()
        for region in found
    ]
    annotations = [{"id": number, **entry} for number, entry in enumerate(annotations, start=1)]
    categories = [{"id": number, "name": label} for number, label in enumerate(labels, start=1)]
    return write_json(file, {"images": images, "annotations": annotations, "categories": categories})


def one_image(folder: Path, size: tuple[int, int], masks: dict[str, np.ndarray], name: str = "a.png") -> Path:
    """instances.json about one image that lies under images/."""
    save_image(folder / "images" / name, size)
    image = {"id": 1, "file_name": name, "width": size[1], "height": size[0]}
    regions = [{"label": label, "segmentation": rle(mask), "bbox": [0, 0, 1, 1]} for label, mask in masks.items()]
    return write_coco(folder / "instances.json", [image], {name: regions})


def convert(folder: Path, *more: object) -> tuple:
    file = folder / "instances.json"
    return ("coco_instances", "--annotations", file, "--prefix", "", "--out", folder / "r.jsonl", *more)


def test_stage_1_sees_the_masks(tmp_path: Path, capsys, tokenizer) -> None:
    """Coverage of patches against numpy: crop and scale by whole factors, so that every patch is a block of pixels."""
    masks = {"ball": disc((112, 140), 60, 50, 30), "café": disc((112, 140), 100, 20, 15)}
    masks["rim"] = np.zeros((112, 140), np.uint8)
    masks["rim"][:, :10] = 1  # the crop removes it
    one_image(tmp_path, (112, 140), masks)
    assert run(capsys, *convert(tmp_path, "--image_folder", tmp_path / "images"))[0] == 0
    entry = load_regions(tmp_path / "r.jsonl")["a.png"]
    coverage, ids, removed = build_patch_regions(entry, CenterCrop(**NUMBERS), 14, tokenizer)
    assert removed == 1 and [tokenizer.decode(i).strip() for i in ids] == ["ball", "café"]
    for row, label in zip(coverage, ("ball", "café"), strict=True):
        blocks = masks[label][:, 14:126].reshape(8, 14, 8, 14).mean((1, 3))
        np.testing.assert_allclose(row.reshape(8, 8).numpy(), blocks, atol=1e-6)
    one_image(tmp_path, (336, 224), {"ball": disc((336, 224), 90, 300, 80)})
    run(capsys, *convert(tmp_path, "--overwrite"))
    entry = load_regions(tmp_path / "r.jsonl")["a.png"]
    coverage, _, _ = build_patch_regions(entry, Pad(**NUMBERS), 14, tokenizer)
    square = np.pad(disc((336, 224), 90, 300, 80), ((0, 0), (56, 56)))
    np.testing.assert_allclose(coverage[0].reshape(8, 8).numpy(), square.reshape(8, 42, 8, 42).mean((1, 3)), atol=1e-6)


def test_a_converted_file_passes_stage_1s_check(tmp_path: Path, capsys, tokenizer) -> None:
    one_image(tmp_path, (112, 140), {"ball": disc((112, 140), 60, 50, 30)})
    run(capsys, *convert(tmp_path))
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a ball"}]
    records = write_json(tmp_path / "records.json", [{"id": "1", "image": "a.png", "conversations": talk}])
    dataset = LlavaDataset(
        load_records(records), tmp_path / "images", TEMPLATES["plain"], tokenizer, CenterCrop(**NUMBERS), 14,
        regions=load_regions(tmp_path / "r.jsonl"),
    )  # fmt: skip
    report = dataset.check(64, progress=False)
    assert (report.images_with_regions, report.regions, report.regions_removed) == (1, 1, 0)
    assert dataset[0]["regions"][0][0].shape == (1, 64)


def test_only_the_records_images(tmp_path: Path, capsys) -> None:
    masks = {"ball": disc((20, 30), 10, 10, 5)}
    regions = {name: [{"label": "ball", "segmentation": rle(masks["ball"]), "bbox": [0, 0, 1, 1]}] for name in "abc"}
    images = [{"id": i, "file_name": name, "width": 30, "height": 20} for i, name in enumerate("abc")]
    write_coco(tmp_path / "instances.json", images, regions)
    talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    records = [{"id": name, "image": name, "conversations": talk} for name in ("b", "z")]
    records.append({"id": "bad", "image": "c", "conversations": []})
    write_json(tmp_path / "records.json", records)
    status, table, _ = run(capsys, *convert(tmp_path, "--records", tmp_path / "records.json"))
    assert status == 0 and list(lines_of(tmp_path / "r.jsonl")) == ["b"] and "2  not in the records" in table
    arguments = convert(tmp_path, "--records", tmp_path / "records.json", "--overwrite", "--prefix", "coco")
    status, _, error = run(capsys, *arguments)
    assert status == 2 and "not in the records" in error and "(coco/a)" in error
    assert "has names such as 'b': give a --prefix that makes them alike" in error
    assert list(lines_of(tmp_path / "r.jsonl")) == ["b"], "what was there stays"


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "x/../../a.png"])
def test_a_path_that_leaves_the_folder(tmp_path: Path, capsys, name: str) -> None:
    mask = disc((20, 30), 10, 10, 5)
    images = [{"id": i, "file_name": n, "width": 30, "height": 20} for i, n in enumerate((name, "good.png"))]
    region = [{"label": "ball", "segmentation": rle(mask), "bbox": [0, 0, 1, 1]}]
    write_coco(tmp_path / "instances.json", images, {name: region, "good.png": region})
    save_image(tmp_path / "images" / "good.png", (20, 30))
    for more in ((), ("--image_folder", tmp_path / "images", "--overwrite")):
        status, table, _ = run(capsys, *convert(tmp_path, *more))
        assert status == 0 and list(lines_of(tmp_path / "r.jsonl")) == ["good.png"]
        assert "1  its name leads out of the image folder" in table
    (tmp_path / "outside.png").write_bytes((tmp_path / "images" / "good.png").read_bytes())
    (tmp_path / "images" / "good.png").unlink()
    (tmp_path / "images" / "good.png").symlink_to(tmp_path / "outside.png")
    status, _, error = run(capsys, *convert(tmp_path, "--image_folder", tmp_path / "images", "--overwrite"))
    assert status == 2 and "2 images: its name leads out of the image folder" in error


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_regions_are_in_the_frame_that_training_reads(tmp_path: Path, capsys, orientation: int) -> None:
    """Annotated as stored: converted, and stage 1's pixels have that size. Annotated upright: left out, and said."""
    mask = disc((20, 30), 10, 10, 5)
    region = [{"label": "ball", "segmentation": rle(mask), "bbox": [0, 0, 1, 1]}]
    images = [{"id": 1, "file_name": "a.jpg", "width": 30, "height": 20}]
    turned = [{"label": "ball", "segmentation": rle(np.rot90(mask)), "bbox": [0, 0, 1, 1]}]
    images.append({"id": 2, "file_name": "b.jpg", "width": 20, "height": 30})
    write_coco(tmp_path / "instances.json", images, {"a.jpg": region, "b.jpg": turned})
    for name in ("a.jpg", "b.jpg"):
        save_image(tmp_path / "images" / name, (20, 30), orientation)
    status, table, _ = run(capsys, *convert(tmp_path, "--image_folder", tmp_path / "images"))
    assert status == 0 and list(lines_of(tmp_path / "r.jsonl")) == ["a.jpg"]
    upright = "annotated upright, stored sideways (EXIF), as training reads it"
    assert ("1  " + (upright if orientation in (6, 8) else "of another size than annotated")) in table


def test_images_that_are_no_images(tmp_path: Path, capsys) -> None:
    one_image(tmp_path, (20, 30), {"ball": disc((20, 30), 10, 10, 5)})
    (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    status, _, error = run(capsys, *convert(tmp_path, "--image_folder", tmp_path / "images"))
    assert status == 2 and "1 images: not an image that can be read" in error and "a.png" in error
    status, _, error = run(capsys, *convert(tmp_path, "--image_folder", tmp_path / "no"))
    assert status == 2 and "no: no such folder" in error


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is an optional extra")
def test_parquet_and_jsonl_are_the_same_regions(tmp_path: Path, capsys) -> None:
    masks = {"мяч": disc((20, 30), 10, 10, 5), "ball": disc((20, 30), 20, 10, 3)}
    one_image(tmp_path, (20, 30), masks)
    found = []
    for out in ("r.jsonl", "r.parquet", "shards"):
        status, _, error = run(capsys, *convert(tmp_path)[:-1], tmp_path / out)
        assert status == 0, error
        found.append([(e.id, e.image, e.width, e.height, e.regions) for e in load_regions(tmp_path / out).values()])
    assert found[0] == found[1] == found[2] and [r.label for r in found[0][0][4]] == ["мяч", "ball"]


def test_the_playgrounds_regions_survive_the_way_through_coco(tmp_path: Path, capsys) -> None:
    """regions_val.jsonl -> COCO instances -> regions: the same masks, boxes, labels, sizes and ids, in order."""
    from playground.generate import generate

    generate(tmp_path, train=1, val=12, seed=5, workers=1)
    original = [json.loads(line) for line in (tmp_path / "regions_val.jsonl").open()]
    images = [
        {"id": line["id"], "file_name": line["image"], "width": line["width"], "height": line["height"]}
        for line in original
    ]
    write_coco(tmp_path / "instances.json", images, {line["image"]: line["regions"] for line in original})
    more = ("--image_folder", tmp_path / "images", "--records", tmp_path / "pretrain_val.json")
    status, _, error = run(capsys, *convert(tmp_path, *more))
    assert status == 0, error
    converted = [json.loads(line) for line in (tmp_path / "r.jsonl").open()]
    for line in converted:
        assert line.pop("source") == "coco_instances: instances.json" and set(line.pop("tools")) == {
            "llava_pat",
            "pycocotools",
        }
        for region in line["regions"]:
            assert region.pop("area") == coco.area(region["segmentation"])
    assert converted == original
    assert sum(len(line["regions"]) for line in original) > 24
    one, two = load_regions(tmp_path / "regions_val.jsonl"), load_regions(tmp_path / "r.jsonl")
    assert [e.regions for e in one.values()] == [e.regions for e in two.values()]


def test_the_playgrounds_refcoco_file(tmp_path: Path, capsys) -> None:
    """Its instances.json and refs.json, as the evaluation reads them, give its own regions as well."""
    from playground.generate import generate

    generate(tmp_path, train=1, val=4, seed=5, workers=1)
    base = ("--annotations", tmp_path / "eval" / "refs.json", "--out", tmp_path / "r.jsonl", "--prefix", "")
    more = ("--split", "val", "--label", "category", "--image_folder", tmp_path / "images")
    status, _, error = run(capsys, "refcoco", *base, *more)
    assert status == 0, error
    one, two = load_regions(tmp_path / "regions_val.jsonl"), load_regions(tmp_path / "r.jsonl")
    assert {name: e.regions for name, e in one.items()} == {name: e.regions for name, e in two.items()}


@pytest.mark.parametrize("name", sorted(CONVERTERS))
def test_help_says_what_every_flag_does(name: str) -> None:
    (commands,) = (a for a in build_parser()._actions if a.dest == "command")
    parser = commands.choices[name]
    assert all(action.help for action in parser._actions) and parser.description.startswith(CONVERTERS[name].title)
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0


def test_the_docs_know_every_data_set_and_flag() -> None:
    text = (ROOT / "docs" / "annotation.md").read_text().partition("\n## Annotating images")[0]
    (commands,) = (a for a in build_parser()._actions if a.dest == "command")
    for name, parser in commands.choices.items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        own = next(group for group in parser._action_groups if group.title.startswith("of "))
        flags = {flag for action in own._group_actions for flag in action.option_strings}
        assert set(re.findall(r"`(--\w+)`", row)) == flags, name
    known = {flag for parser in commands.choices.values() for flag in parser._option_string_actions}
    assert set(re.findall(r"--\w+", text)) <= known | {"--regions_path"}


def test_as_a_user_types_it(tmp_path: Path) -> None:
    one_image(tmp_path, (20, 30), {"ball": disc((20, 30), 10, 10, 5)})
    command = [sys.executable, "-m", "llava_pat.annotation.convert", *map(str, convert(tmp_path, "--min_area", "3"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "ball 1" in done.stdout and "Traceback" not in done.stderr
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2 and "is already there; give another name, or --overwrite" in again.stderr
    none = subprocess.run([*command[:3], "cocco"], cwd=ROOT, capture_output=True, text=True)
    assert none.returncode == 2 and "invalid choice: 'cocco'" in none.stderr
